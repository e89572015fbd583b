from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mtbi.model.losses.several_tokens import SHARE
from mtbi.recipe import LossConfig

CROSS_ENTROPY = {"ce": 1.0, "kl": 0.0, "chunk": 7}


@pytest.fixture
def model(make_model):
    model = make_model(loss=LossConfig(**CROSS_ENTROPY, later_tokens=2))
    torch.manual_seed(0)
    for layer in model.head.later.layers:
        layer.weight.data = torch.randn(32, 32) * 0.1
    return model


def answers(batch) -> list[list[int]]:
    """The numbers of the targets of each answer."""
    where: dict[tuple[int, int, int], list[int]] = {}
    for number, slot in enumerate(batch.target_slot.tolist()):
        row, group, branch = slot // batch.group.shape[1], batch.group.flatten()[slot], batch.branch.flatten()[slot]
        where.setdefault((row, int(group), int(branch)), []).append(number)
    return list(where.values())


def test_two_further_tokens_have_the_loss_of_the_definition(model, make_model, packed):
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = model(packed)
    next_token = make_model(loss=LossConfig(**CROSS_ENTROPY))(packed)
    expected = next_token.loss
    for offset, layer in enumerate(model.head.later.layers, start=1):
        pairs = [(first, later) for answer in answers(packed) for first, later in zip(answer, answer[offset:])]  # noqa: B905
        first, later = torch.tensor(pairs).T
        assert len(pairs) < len(packed.target_ids) - offset, "some answers end"
        states = seen[0][first]
        logits = model.llm.lm_head(states + functional.silu(states @ layer.weight.T))
        losses = functional.cross_entropy(logits, packed.target_ids[later], reduction="none")
        part = torch.stack([(losses * packed.target_weight[later]).sum(), packed.target_weight[later].sum()])
        torch.testing.assert_close(out.means[f"loss_token_{offset + 1}"], part.detach())
        expected = expected + SHARE / 2 * part[0]
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.means["loss"], next_token.means["loss"])


def test_heads_and_adapter_get_gradients(model, packed):
    names = set(model.trainable_parameters())
    assert {name for name in names if name.startswith("head.")} == {f"head.later.layers.{n}.weight" for n in (0, 1)}
    model(packed).loss.backward()
    assert all(value.grad.norm() > 0 for value in model.trainable_parameters().values())


def test_every_process_runs_every_head(model, packed):
    """Also where it has no target, or fewer than the heads look ahead: ZeRO-3 needs that."""
    for batch in (packed.clips_alone(), first_targets(packed, 1)):
        out = model(batch)
        assert out.means["loss_token_3"].tolist() == [0, 0]
        out.loss.backward()
        assert all(layer.weight.grad is not None for layer in model.head.later.layers)


def first_targets(batch, count):
    fields = ("target_slot", "target_ids", "target_weight", "target_task", "teacher_ids", "teacher_logprobs")
    for name in fields:
        setattr(batch, name, getattr(batch, name)[:count])
    return batch
