from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from mtbi.errors import UserError
from mtbi.model.losses.head import build_head
from mtbi.recipe import LossConfig


def test_chunks_do_not_change_the_loss(make_model, packed):
    results = []
    for chunk in (1, 5, 1000):
        model = make_model(loss=LossConfig(ce=0.3, kl=1.0, chunk=chunk))
        out = model(packed)
        out.loss.backward()
        results.append(
            [out.loss, *out.means.values(), *(parameter.grad for parameter in model.trainable_parameters().values())]
        )
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)


def test_sums_by_task(make_model, packed):
    model, seen = make_model(loss=LossConfig(ce=1.0, kl=0.0)), []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = model(packed)
    logits = model.llm.lm_head(seen[0])
    losses = functional.cross_entropy(logits, packed.target_ids, reduction="none") * packed.target_weight
    for task in range(3):
        mine = packed.target_task == task
        expected = torch.stack([losses[mine].sum(), packed.target_weight[mine].sum()])
        torch.testing.assert_close(out.means["task_loss"][:, task], expected)
        hits = (logits.argmax(-1) == packed.target_ids)[mine].sum()
        assert out.means["task_agreement"][:, task].tolist() == [hits, mine.sum()]
    torch.testing.assert_close(out.loss, out.means["task_loss"][0].sum())
    torch.testing.assert_close(out.means["loss"], out.means["task_loss"].sum(1))


def test_sums_by_source_are_made_where_there_are_several(make_model, packed):
    model = make_model(loss=LossConfig(ce=1.0, kl=0.0))
    assert "source_loss" not in model(packed).means
    source = torch.arange(len(packed.target_ids)) % 2 * 2  # the first and the third of three
    model.head.sources = 3
    out, seen = model(replace(packed, target_source=source)), packed.target_weight
    for kind in ("loss", "agreement"):
        torch.testing.assert_close(out.means[f"source_{kind}"].sum(1), out.means[f"task_{kind}"].sum(1))
    torch.testing.assert_close(out.means["source_loss"][1], torch.stack([seen[::2].sum(), seen[:0].sum(), seen[1::2].sum()]))
    assert out.means["source_agreement"][1].tolist() == [(source == number).sum() for number in range(3)]


class SquaredError:
    """A loss that is no imitation: any loss of logits can be wrapped."""

    def columns(self, batch):
        return (batch.target_ids,)

    def __call__(self, logits, ids):
        wanted = functional.one_hot(ids, logits.shape[1])
        return (logits - wanted).square().mean(1), logits.argmax(-1) == ids

    def fused(self, device):
        return None


@pytest.mark.parametrize("token_loss", [None, SquaredError()])
@pytest.mark.parametrize("trained", [("weight",), ("weight", "bias")])
def test_an_output_layer_that_trains_gets_the_gradient_of_the_definition(packed, trained, token_loss):
    torch.manual_seed(0)
    output = torch.nn.Linear(32, 61).requires_grad_(False)
    parameters = [getattr(output, name).requires_grad_() for name in trained]
    head = build_head(output, LossConfig(ce=0.7, kl=1.0, chunk=5), 3, SimpleNamespace())
    head.token_loss = token_loss or head.token_loss
    hidden = torch.randn(len(packed.target_ids), 32, requires_grad=True)
    found = torch.autograd.grad(3 * head(hidden, packed).loss, [hidden, *parameters])
    losses, _ = head.chunk_losses(hidden, head.token_loss.columns(packed))
    expected = torch.autograd.grad(3 * (losses * packed.target_weight).sum(), [hidden, *parameters])
    torch.testing.assert_close(found, expected)


def test_another_kind_of_output_layer_is_refused():
    with pytest.raises(UserError, match="Identity"):
        build_head(torch.nn.Identity(), LossConfig(), 1, SimpleNamespace())
