from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mtbi.errors import UserError
from mtbi.model.loss import AnswerHead, teacher_divergence
from mtbi.recipe import LossConfig


class NoConfig:
    """An LLM configuration without logit scaling."""


def full_divergence(logits, share):
    return (share * (share.log() - logits.log_softmax(-1))).sum(-1)


def test_divergence_with_every_token_stored_is_the_full_divergence():
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 11, dtype=torch.double), torch.randn(5, 11, dtype=torch.double).log_softmax(-1)
    order = teacher.argsort(-1, descending=True)
    found = teacher_divergence(logits, logits.logsumexp(-1), order, teacher.gather(1, order))
    torch.testing.assert_close(found, full_divergence(logits, teacher.exp()))


def test_divergence_counts_all_other_tokens_as_one_class_and_skips_unused_places():
    torch.manual_seed(0)
    logits = torch.randn(1, 6, dtype=torch.double, requires_grad=True)
    ids, share = torch.tensor([[4, 2, 0, 0]]), torch.tensor([[0.5, 0.3, 0.0, 0.0]], dtype=torch.double)
    found = teacher_divergence(logits, logits.logsumexp(-1), ids, share.log())
    q = logits.softmax(-1)[0]
    expected = 0.5 * (0.5 / q[4]).log() + 0.3 * (0.3 / q[2]).log() + 0.2 * (0.2 / (1 - q[4] - q[2])).log()
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (found.sum(), expected)))


def test_divergence_is_finite_when_rounded_shares_exceed_one():
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = teacher_divergence(logits, logits.logsumexp(-1), torch.tensor([[1, 0, 2]]), torch.tensor([[-0.001, -7.0, -8.0]]))
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
