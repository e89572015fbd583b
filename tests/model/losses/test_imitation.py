from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import VOCABULARY
from torch.nn import functional

from mtbi.errors import UserError
from mtbi.model.losses.imitation import Imitation, teacher_divergence
from mtbi.recipe import LossConfig


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
    loss, correct = Imitation.apply(
        own.clone(), stored, named, share.log(), *(torch.full((len(share),), part).double() for part in (ce, kl))
    )
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


def test_gold_and_imitated_answers_lie_in_one_batch(make_model, packed):
    """A target without a teacher has cross-entropy alone, and the others their own loss, to the last bit."""
    gold = torch.arange(len(packed.target_ids)) % 3 == 0
    mixed = replace(packed, teacher_logprobs=packed.teacher_logprobs.masked_fill(gold[:, None], -torch.inf))
    both = make_model(loss=LossConfig(ce=0.0, kl=1.0, gold_ce=0.7)).head.token_loss
    logits = torch.randn(len(gold), VOCABULARY)
    losses, _ = both(logits.clone(), *both.columns(mixed))
    imitated, _ = make_model(loss=LossConfig(ce=0.0, kl=1.0)).head.token_loss(logits.clone(), *both.columns(packed))
    torch.testing.assert_close(losses[~gold], imitated[~gold], rtol=0, atol=0)
    right = 0.7 * functional.cross_entropy(logits, packed.target_ids, reduction="none")
    torch.testing.assert_close(losses[gold], right[gold])


def test_only_gold_answers_need_no_teacher(make_model, packed):
    gold = replace(packed, teacher_ids=packed.teacher_ids[:, :0], teacher_logprobs=packed.teacher_logprobs[:, :0])
    plain = make_model(loss=LossConfig(ce=0.5, kl=0.0))(gold).loss
    torch.testing.assert_close(make_model(loss=LossConfig(ce=0.0, kl=1.0, gold_ce=0.5))(gold).loss, plain)


def test_mistakes_are_named(make_model, packed):
    with pytest.raises(UserError, match="both 0"):
        make_model(loss=LossConfig(ce=0.0, kl=0.0))
    packed.teacher_ids, packed.teacher_logprobs = packed.teacher_ids[:, :0], packed.teacher_logprobs[:, :0]
    with pytest.raises(UserError, match="no teacher"):
        make_model(loss=LossConfig(ce=0.0, kl=1.0))(packed)
