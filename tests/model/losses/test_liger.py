"""Liger's kernel against ours. Triton's interpreter runs it on the CPU, in a process of its own: it is chosen at import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mtbi.model.losses import liger
from mtbi.recipe import LossConfig

CHECK = """
import torch
from torch import nn
from types import SimpleNamespace
from mtbi.model.losses.liger import LigerCrossEntropy
from mtbi.model.losses.head import build_head
from mtbi.recipe import LossConfig

torch.manual_seed(0)
for bias in (False, True):
    output = nn.Linear(32, 301, bias=bias).requires_grad_(False)
    ids, weight = torch.randint(301, (37,)), torch.linspace(0.5, 2, 37)
    head = build_head(output, LossConfig(ce=0.7, kl=0.0, chunk=10), 1, SimpleNamespace())
    none = torch.zeros(37, 0)
    batch = SimpleNamespace(
        target_ids=ids, teacher_ids=none.long(), teacher_logprobs=none, target_weight=weight, target_task=torch.zeros(37).long()
    )
    hidden = torch.randn(37, 32, requires_grad=True)
    expected = head(hidden, batch)
    [gradient] = torch.autograd.grad(expected.loss, hidden)
    losses, correct = LigerCrossEntropy.apply(hidden, output.weight, output.bias, ids, torch.full((37,), 0.7))
    [found] = torch.autograd.grad((losses * weight).sum(), hidden)
    torch.testing.assert_close((losses * weight).sum(), expected.loss)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    assert correct.sum() == expected.means["task_agreement"][0, 0]
print("same")
"""


def test_the_kernel_gives_the_losses_and_gradients_of_the_chunks():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "same", done.stderr


def test_it_is_taken_for_cross_entropy_on_a_gpu(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    answers, divergence = LossConfig(ce=1.0, kl=0.0), LossConfig(ce=1.0, kl=1.0)
    assert liger.takes(answers, gpu)
    assert not liger.takes(answers, cpu)
    assert not liger.takes(divergence, gpu)
    assert not liger.takes(LossConfig(ce=1.0, kl=0.0, kernel="chunked"), gpu)
    monkeypatch.setattr(liger, "installed", lambda: False)
    assert not liger.takes(answers, gpu)


def test_a_version_without_the_arguments_is_not_taken(monkeypatch, caplog):
    """That of 0.8.0 lacks `compute_gradients`: the first step of training would end in a TypeError."""
    from liger_kernel.ops import fused_linear_cross_entropy as kernel

    assert liger.installed.__wrapped__()

    def older(_input, weight, target, bias=None, reduction="mean", return_predicted_tokens=False):
        raise AssertionError("not called")

    monkeypatch.setattr(kernel, "fused_linear_cross_entropy_forward", older)
    assert not liger.installed.__wrapped__()
    assert "its kernel lacks compute_gradients, weight_requires_grad" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_it_gives_the_gradients_of_the_chunks(make_model, packed):
    found = []
    for kernel in ("auto", "chunked"):
        model = make_model(loss=LossConfig(ce=1.0, kl=0.0, kernel=kernel)).cuda()
        model(packed.to(torch.device("cuda"))).loss.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.trainable_parameters().values()]))
    assert (found[0] - found[1]).norm() / found[1].norm() < 1e-3
