from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from mtbi.errors import UserError
from mtbi.model.losses.imitation import AnswerHead, Imitation, teacher_divergence
from mtbi.recipe import LossConfig


class NoConfig:
    """An LLM configuration without logit scaling."""


def divergence(logits, share, ids):
    """By its definition: the named tokens one by one, all others as one class; gradients by autograd."""
    q = logits.softmax(-1)
    named = (share * (share / q[ids]).log()).sum()
    rest, others = 1 - share.sum(), 1 - q[ids].sum()
    return named + (rest * (rest / others).log() if rest > 1e-6 else 0)


def test_divergence_with_every_token_stored_is_the_full_divergence():
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 11, dtype=torch.double), torch.randn(5, 11, dtype=torch.double).log_softmax(-1)
    order = teacher.argsort(-1, descending=True)
    expected = (teacher.exp() * (teacher - logits.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(teacher_divergence(logits.clone(), order, teacher.gather(1, order)), expected)


@pytest.mark.parametrize("ce", [0.0, 0.7])
@pytest.mark.parametrize("kl", [0.0, 1.3])
def test_loss_and_gradient_are_those_of_the_definition(ce, kl):
    """Unused places, all other tokens as one class, a teacher that is certain, one that says nothing."""
    torch.manual_seed(0)
    shares = [[0.5, 0.3, 0.0, 0.0], [0.25, 0.2, 0.15, 0.1], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0]]
    share = torch.tensor(shares, dtype=torch.double)
    logits = 3 * torch.randn(len(share), 9, dtype=torch.double)
    named = torch.stack([torch.randperm(9)[:4] for _ in share])
    named[0, 2:] = named[0, 0]  # what unused places hold does not matter
    stored = torch.tensor([int(named[0, 0]), int(named[1, 3]), 5, 2, 8])
    own, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, correct = Imitation.apply(own.clone(), stored, named, share.log(), ce, kl)
    expected = ce * functional.cross_entropy(reference, stored, reduction="none")
    expected = expected + kl * torch.stack([
        divergence(row, t[t > 0], i[t > 0]) for row, t, i in zip(reference, share, named, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(loss, expected)
    assert torch.equal(correct, logits.argmax(-1) == stored)
    if ce or kl:
        weight = torch.linspace(0.5, 2, len(share), dtype=torch.double)
        gradients = [torch.autograd.grad((one * weight).sum(), at)[0] for one, at in ((loss, own), (expected, reference))]
        torch.testing.assert_close(*gradients)


def test_divergence_of_a_student_that_is_surer_than_floats_tell():
    """The others' share underflows next to the named token's, but its logarithm does not."""
    logits = torch.tensor([[200.0, 0.0, 1.0]], requires_grad=True)
    loss = teacher_divergence(logits.clone(), torch.tensor([[0]]), torch.tensor([[0.9]]).log())
    torch.testing.assert_close(loss, torch.tensor([0.9 * math.log(0.9) + 0.1 * (math.log(0.1) + 200 - math.log(1 + math.e))]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.1, -0.1 / (1 + math.e), -0.1 * math.e / (1 + math.e)]]))


def test_divergence_is_finite_when_rounded_shares_exceed_one():
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = teacher_divergence(logits.clone(), torch.tensor([[1, 0, 2]]), torch.tensor([[-0.001, -7.0, -8.0]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_chunks_do_not_change_the_loss(make_model, packed):
    results = []
    for chunk in (1, 5, 1000):
        model = make_model(loss=LossConfig(ce=0.3, kl=1.0, chunk=chunk))
        out = model(packed)
        out.loss.backward()
        results.append((*out, *(parameter.grad for parameter in model.trainable_parameters().values())))
    for other in results[1:]:
        torch.testing.assert_close(list(other), list(results[0]), rtol=1e-5, atol=1e-5)


def test_sums_by_task(make_model, packed):
    model, seen = make_model(loss=LossConfig(ce=1.0, kl=0.0)), []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = model(packed)
    logits = model.llm.lm_head(seen[0])
    losses = functional.cross_entropy(logits, packed.target_ids, reduction="none") * packed.target_weight
    for task in range(3):
        mine = packed.target_task == task
        torch.testing.assert_close(out.task_loss[task], losses[mine].sum())
        torch.testing.assert_close(out.task_weight[task], packed.target_weight[mine].sum())
        assert out.task_correct[task] == (logits.argmax(-1) == packed.target_ids)[mine].sum()
        assert out.task_count[task] == mine.sum()
    torch.testing.assert_close(out.loss, out.task_loss.sum())


def test_mistakes_are_named(make_model, packed, pack_rows):
    with pytest.raises(UserError, match="both 0"):
        make_model(loss=LossConfig(ce=0.0, kl=0.0))
    packed.teacher_ids, packed.teacher_logprobs = packed.teacher_ids[:, :0], packed.teacher_logprobs[:, :0]
    with pytest.raises(UserError, match="no teacher"):
        make_model(loss=LossConfig(ce=0.0, kl=1.0))(packed)
    with pytest.raises(UserError, match="Identity"):
        AnswerHead(torch.nn.Identity(), LossConfig(), 1, NoConfig())
