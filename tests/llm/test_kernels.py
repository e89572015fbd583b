"""The reference kernel, and the choice among those that a GPU may have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.nn import attention

from mtbi.errors import UserError
from mtbi.llm import kernels
from mtbi.llm.kernels import Sequences

CPU = torch.device("cpu")


def test_reference_kernel_is_exact_in_double_precision():
    torch.manual_seed(0)
    lengths, heads, size = torch.tensor([3, 1, 5]), 4, 6
    query = torch.randn(9, heads, size, dtype=torch.double, requires_grad=True)
    key, value = (torch.randn(9, 2, size, dtype=torch.double, requires_grad=True) for _ in range(2))
    sequences = Sequences.of(lengths)
    out, lse = kernels.forward(query.detach(), key.detach(), value.detach(), sequences, sequences, True, 0.3)
    expected = torch.cat([
        torch.nn.functional.scaled_dot_product_attention(
            *(s.transpose(0, 1) for s in states), is_causal=True, scale=0.3, enable_gqa=True
        ).transpose(0, 1)
        for states in zip(*(tensor.split(lengths.tolist()) for tensor in (query, key, value)), strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(out, expected.detach())
    grad = torch.randn_like(out)
    expected.backward(grad)
    found = kernels.backward(grad, query.detach(), key.detach(), value.detach(), out, lse, sequences, sequences, True, 0.3)
    for mine, tensor in zip(found, (query, key, value), strict=True):
        torch.testing.assert_close(mine, tensor.grad, rtol=1e-5, atol=1e-6)


def test_right_kernels_pass_the_check_and_wrong_ones_do_not(monkeypatch) -> None:
    kernels.check(CPU)
    right = kernels.backward

    def wrong(grad, query, *others):
        dq, dk, dv = right(grad, query, *others)
        return dq, dk, dv * (1.1 if query.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(kernels, "backward", wrong)
    with pytest.raises(ArithmeticError, match=r"dv of attention is 10\.\d% off"):
        kernels.check(CPU)


@pytest.fixture
def installed(monkeypatch) -> Callable[..., str]:
    """Which kernels are taken on a GPU of some generation, where PyTorch's bridges to newer ones do what these do."""

    def choose(generation: int, shape: tuple[int, ...] = (), **bridges: Callable[[], object]) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
        for name in kernels.NEWER:
            attention.register_flash_attention_impl(name, register_fn=bridges.get(name, missing))
        return kernels.choose_kernels.__wrapped__(CPU, *shape)

    monkeypatch.setattr(kernels, "_newer", None)
    monkeypatch.setattr(kernels, "_flash_attn_varlen_forward", None)
    monkeypatch.setattr("torch.nn.attention._registry._FLASH_ATTENTION_IMPLS", {})
    yield choose
    torch.backends.cuda.enable_flash_sdp(True)
    if attention.current_flash_attention_impl():
        attention.restore_flash_attention_impl()


def missing() -> None:
    raise ModuleNotFoundError("no such kernels")


def works() -> SimpleNamespace:
    return SimpleNamespace(remove=lambda: None)


def test_the_newest_kernels_for_the_gpu_are_taken(installed) -> None:
    assert installed(9) == "PyTorch's own"
    assert installed(9, FA3=works, FA4=works) == kernels._newer == "FA3"
    assert installed(10, FA3=works, FA4=works) == kernels._newer == attention.current_flash_attention_impl() == "FA4"
    assert installed(8, FA3=works, FA4=works) == "PyTorch's own"


def test_kernels_that_do_not_load_or_are_wrong_are_passed_over(installed, monkeypatch, caplog) -> None:
    def broken():
        raise ImportError("undefined symbol")

    assert installed(9, FA3=broken, FA4=works) == "FA4"
    assert "ImportError: undefined symbol" in caplog.text

    def refuse(device, *shape):
        if kernels._newer is None:
            return
        raise ArithmeticError("dq of attention is 12.0% off")

    monkeypatch.setattr(kernels, "check", refuse)
    assert installed(9, FA3=works) == "PyTorch's own"
    assert "FA3 is installed, but not used for 4 query heads" in caplog.text
    assert "ArithmeticError: dq of attention is 12.0% off" in caplog.text
    assert kernels._newer is attention.current_flash_attention_impl() is None


def test_kernels_are_tried_with_the_heads_of_the_model(installed, monkeypatch, caplog) -> None:
    tried, right = [], kernels.check

    def small_heads_only(device, heads, key_heads, size):
        tried.append((heads, key_heads, size))
        if kernels._newer and size > 128:
            raise RuntimeError("head size 256 is not supported")
        right(device, heads, key_heads, size)

    monkeypatch.setattr(kernels, "check", small_heads_only)
    assert installed(10, FA4=works, shape=(2, 1, 256)) == "PyTorch's own"
    assert tried == [(2, 1, 256)] * 2
    assert "FA4 is installed, but not used for 2 query heads and 1 key heads of 256 numbers" in caplog.text
    assert attention.current_flash_attention_impl() is None


def test_where_no_kernel_is_right_that_is_said(installed, monkeypatch) -> None:
    def refuse(device, *shape):
        raise RuntimeError("head size 512 is not supported")

    monkeypatch.setattr(kernels, "check", refuse)
    with pytest.raises(
        UserError, match=r"4 query heads and 2 key heads of 512 numbers .head size 512.*use model.attention=auto"
    ):
        installed(9, shape=(4, 2, 512))


def test_newer_kernels_compute_packed_rows_only(installed) -> None:
    """PyTorch puts them in the place of its flash kernel for everything; what the check does not cover gets other kernels."""
    assert torch.backends.cuda.flash_sdp_enabled()
    assert installed(8) == "PyTorch's own"
    assert torch.backends.cuda.flash_sdp_enabled()
    assert installed(9, FA3=works) == "FA3"
    assert not torch.backends.cuda.flash_sdp_enabled()


def test_flash_attn_2_is_found_by_its_functions_and_used_only_where_it_is_right(installed, monkeypatch, caplog) -> None:
    assert not kernels.has_flash_attn_2()
    monkeypatch.setattr(kernels, "_flash_attn_varlen_forward", works)
    assert kernels.has_flash_attn_2()
    assert installed(8) == "flash-attn 2"

    def wrong_arguments(device, *shape):
        if kernels._flash_attn_varlen_forward:
            raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(kernels, "check", wrong_arguments)
    assert installed(8) == "PyTorch's own"
    assert "flash-attn 2 is installed, but not used" in caplog.text
