"""What nobody reads is not computed, and what is read does not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtbi.llm import attention
from mtbi.llm.last_layer import parts


def last(model) -> nn.Module:
    return model.llm.get_decoder().layers[-1]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("back_end", [attention.DENSE, attention.FLASH])
def test_targets_have_the_hidden_states_and_gradients_of_a_whole_layer(make_model, packed, kind, back_end):
    if kind == "gemma3" and back_end == attention.FLASH:
        pytest.skip("flash refuses this model's sliding window")
    found = []
    for whole in (False, True):
        model, seen = make_model(kind, back_end), []
        if whole:
            for part in parts(last(model)):
                part._forward_pre_hooks.clear()
                part._forward_hooks.clear()
        model.head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        model(packed).loss.backward()
        found.append([seen[0], *(parameter.grad for parameter in model.trainable_parameters().values())])
    torch.testing.assert_close(found[0], found[1])


def test_only_targets_pass_the_last_layer(make_model, packed, pack_rows):
    model, counts = make_model(), []
    names = [name for name, module in last(model).named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        last(model).get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: counts.append((name, inputs[0].shape[:-1].numel()))
        )
    model(packed)
    everywhere, targets = packed.token_ids.numel(), len(packed.target_slot)
    assert dict(counts) == {name: everywhere if name in ("self_attn.k_proj", "self_attn.v_proj") else targets for name in names}
    counts.clear()
    model(pack_rows([[], []], 40))
    assert dict(counts)["mlp.up_proj"] == 1  # all ranks run all modules


def test_answers_are_generated_with_the_whole_layer(make_model):
    model, seen = make_model(), []
    last(model).mlp.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    model.llm(torch.arange(3, 8)[None])
    assert seen == [(1, 5, 32)]


def test_recomputed_activations_are_of_the_same_positions(make_model, packed, pack_rows):
    """With activation checkpointing, and another batch seen between the forward and the backward pass."""
    plain, model = make_model(), make_model()
    plain(packed).loss.backward()
    model.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    out = model(packed)
    with torch.no_grad():
        model(pack_rows([[(900, [6, 5])]], 40))
    out.loss.backward()
    for (name, mine), theirs in zip(model.trainable_parameters().items(), plain.trainable_parameters().values(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_a_mixture_of_experts_is_left_as_it_is():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)

    layer = nn.Module()
    layer.self_attn, layer.mlp = nn.Module(), Experts()
    layer.self_attn.qkv_proj = nn.Linear(4, 12)
    layer.self_attn.o_proj = nn.Linear(4, 4)
    assert parts(layer) == [layer.self_attn.o_proj]
