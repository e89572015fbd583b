from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tiny_models import SIZES, VOCABULARY, ToyEncoder, train_on
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from mtbi.llm import attention
from mtbi.model.adapter import build_adapter
from mtbi.model.generate import generate
from mtbi.model.new_rows import NewRows
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import AdapterConfig, LossConfig

COUNT = 4
LLMS = {
    "untied": lambda: LlamaConfig(**SIZES),
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "scaled": lambda: Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 2),  # tied, its embedding is scaled
}
#: The first new id: after all rows of the matrices, or in rows that no token of the tokenizer uses.
FIRST = [VOCABULARY, VOCABULARY - 6]


def speech_llm(llm, chunk=7) -> SpeechLLMModule:
    torch.manual_seed(1)
    adapter = build_adapter(AdapterConfig(stack=2), ToyEncoder.width, 32, 0.5)
    return SpeechLLMModule(ToyEncoder().requires_grad_(False), adapter, llm, LossConfig(ce=1.0, kl=0.0, chunk=chunk), tasks=3)


def make(kind: str, first: int) -> SpeechLLMModule:
    attention.register()
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(LLMS[kind](), attn_implementation=attention.DENSE).requires_grad_(False).eval()
    NewRows(llm, first, COUNT)
    return speech_llm(llm)


def resized(model: SpeechLLMModule, first: int) -> SpeechLLMModule:
    """The same weights in matrices that hold the new rows and train whole."""
    config = deepcopy(model.llm.config)
    config.vocab_size = max(VOCABULARY, first + COUNT)
    llm = AutoModelForCausalLM.from_config(config, attn_implementation=attention.DENSE).requires_grad_(False).eval()
    llm.load_state_dict(
        {name: value for name, value in model.llm.state_dict().items() if value.shape[:1] != (VOCABULARY,)}, False
    )
    for mine, theirs in zip(tables(llm), tables(model.llm), strict=True):
        weight = mine.weight.data
        weight[:VOCABULARY] = theirs.weight
        weight[first : first + COUNT] = theirs.new_rows
        mine.weight.requires_grad_()
    other = speech_llm(llm)
    other.adapter.load_state_dict(model.adapter.state_dict())
    return other


def tables(llm) -> tuple[torch.nn.Module, torch.nn.Module]:
    return llm.get_input_embeddings(), llm.get_output_embeddings()


@pytest.fixture
def tagged(packed):
    """`tagged(first)`: the packed batch with new tokens among its tokens and its targets."""

    def change(first: int):
        ids, targets = packed.token_ids.clone(), packed.target_ids % first
        ids[packed.branch > 0] %= first
        ids[0, torch.tensor([1, 12, 13, 14, 15])] = first + torch.tensor([0, 1, 2, 3, 1])
        targets[::3] = first + torch.arange(len(targets[::3])) % COUNT
        return replace(packed, token_ids=ids, target_ids=targets)

    return change


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("kind", LLMS)
def test_loss_and_gradients_are_those_of_longer_matrices(kind, first, tagged):
    model, batch = make(kind, first), tagged(first)
    for number, table in enumerate(tables(model.llm)):
        torch.manual_seed(number * (kind == "untied"))
        table.new_rows.data = torch.randn(COUNT, 32) * 0.3
    other = resized(model, first)
    outs = model(batch), other(batch)
    torch.testing.assert_close(outs[0].means, outs[1].means)
    for out in outs:
        out.loss.backward()
    for mine, whole in zip(tables(model.llm), tables(other.llm), strict=True):
        assert mine.weight.grad is None
        torch.testing.assert_close(mine.new_rows.grad, whole.weight.grad[first : first + COUNT], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LLMS)
def test_training_changes_new_rows_and_no_frozen_matrix(kind, tagged):
    model, batch = make(kind, VOCABULARY), tagged(VOCABULARY)
    names = {name for name in model.trainable_parameters() if not name.startswith("adapter.")}
    single = {"llm.model.embed_tokens.new_rows"}
    assert names == (single | {"llm.lm_head.new_rows"} if kind == "untied" else single)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = train_on(model, batch, steps=8, rate=1e-2)
    assert losses[-1] < losses[0]
    for name, value in model.named_parameters():
        if name in names:
            assert (value != before[name]).any(1).all(), f"{name}: all {COUNT} rows train"
        elif name.startswith("llm."):
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("kind", LLMS)
def test_generation_emits_and_reads_new_tokens(kind, first):
    model = make(kind, first)
    prompt = torch.tensor([5, 6, 7])
    hidden = model.llm.get_decoder()(inputs_embeds=model.embed(prompt)[None]).last_hidden_state[0, -1]
    model.llm.get_output_embeddings().new_rows.data[2] = 50 * hidden / hidden.norm()
    [answer] = generate(model, [[prompt]], max_new_tokens=6, end_id=2)
    assert answer[0] == first + 2
    other = resized(model, first)
    assert generate(other, [[prompt]], max_new_tokens=6, end_id=2) == [answer]
