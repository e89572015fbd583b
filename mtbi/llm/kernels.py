"""Variable-length attention with its log-sum-exp, forward and backward, by the best kernel that is installed.

On a GPU that is FlashAttention-3 or -4 (arXiv 2407.08608) if `choose_kernels` finds them, else flash-attn 2 if it is installed,
else PyTorch's own copy of flash-attn 2. On the CPU a plain reference stands in. Tests use it to verify shared-prefix attention
without a GPU, and `check` compares GPU kernels with it before they are used.
"""

from __future__ import annotations

import logging
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import attention, functional

from mtbi.errors import UserError

try:  # these functions identify flash-attn 2: the package of FlashAttention-4 has the same name
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward, _flash_attn_varlen_forward
except Exception:  # not installed, or built for another torch: PyTorch's own copy is used
    _flash_attn_varlen_forward = None

log = logging.getLogger(__name__)
#: Newer kernels that PyTorch can use in place of its own, by PyTorch's name, in the order of trying. The numbers are the major
#: compute capabilities of the GPUs that each is for.
NEWER = {"FA3": (9,), "FA4": (9, 10)}
_newer: str | None = None  #: the one in use


class Sequences(NamedTuple):
    """Variable-length sequences, end to end: sequence i is tokens `starts[i]` to `starts[i + 1]`."""

    starts: Tensor  #: (sequences + 1,) int32
    longest: int

    @classmethod
    def of(cls, lengths: Tensor) -> Sequences:
        """From lengths `(sequences,)`."""
        starts = functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return cls(starts, int(lengths.max()) if len(lengths) else 0)


def has_flash_attn_2() -> bool:
    """Whether flash-attn 2 is installed and built for this torch."""
    return _flash_attn_varlen_forward is not None


@cache
def choose_kernels(device: torch.device, heads: int = 4, key_heads: int = 2, size: int = 128) -> str:
    """Use the newest kernels that are installed for a GPU and compute the right numbers there. Returns their name.

    Each is tried on a few sequences first, with the LLM's numbers of heads and size of a head. A warning says why an installed
    one is not used. PyTorch replaces its flash kernel by a newer one for the whole process. The check covers packed rows only,
    so everything else (encoder, adapter, answers) then uses other kernels. Raises UserError if no kernel is right.
    """
    global _newer, _flash_attn_varlen_forward
    shape = (heads, key_heads, size)
    major = torch.cuda.get_device_capability(device)[0] if hasattr(attention, "activate_flash_attention_impl") else 0
    for name in (name for name, generations in NEWER.items() if major in generations):
        try:
            attention.activate_flash_attention_impl(name)
            _newer = name
            check(device, *shape)
        except ModuleNotFoundError:
            _newer = None
        except Exception as error:  # a prototype may raise anything, and there are other kernels
            _passed_over(name, shape, error)
            if attention.current_flash_attention_impl():
                attention.restore_flash_attention_impl()
            _newer = None
        else:
            torch.backends.cuda.enable_flash_sdp(False)
            log.info("%s computes packed rows; scaled-dot-product attention elsewhere goes without flash kernels", name)
            return name
    if _flash_attn_varlen_forward is not None:
        try:
            check(device, *shape)
        except Exception as error:  # for example a version with other arguments
            _passed_over("flash-attn 2", shape, error)
            _flash_attn_varlen_forward = None
        else:
            return "flash-attn 2"
    try:
        check(device, *shape)
    except (ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"no flash attention kernel here is right for {heads} query heads and {key_heads} key heads of {size} numbers "
            f"({str(error).splitlines()[0]}); use model.attention=auto, flex or dense"
        ) from error
    return "PyTorch's own"


def _passed_over(name: str, shape: tuple[int, int, int], error: Exception) -> None:
    message = "%s is installed, but not used for %d query heads and %d key heads of %d numbers: %s: %s"
    log.warning(message, name, *shape, type(error).__name__, error)


def check(
    device: torch.device, heads: int = 4, key_heads: int = 2, size: int = 128, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Compare the kernels in use with the float32 reference on a few sequences.

    Raises ArithmeticError where they differ by more than 2%.
    """
    lengths, scale = torch.tensor([5, 130, 64]), size**-0.5
    generator = torch.Generator().manual_seed(0)
    for causal, key_lengths in ((True, lengths), (False, lengths + 40)):
        shapes = [(lengths, heads), (key_lengths, key_heads), (key_lengths, key_heads), (lengths, heads)]
        states = [torch.randn(int(n.sum()), count, size, generator=generator).to(dtype) for n, count in shapes]
        results, references = (
            _forward_and_backward(
                [tensor.to(*kind) for tensor in states], lengths.to(kind[0]), key_lengths.to(kind[0]), causal, scale
            )
            for kind in ((device, dtype), ("cpu", torch.float32))
        )
        for name, result, reference in zip(("output", "log-sum-exp", "dq", "dk", "dv"), results, references, strict=True):
            error = float((result.cpu().float() - reference).norm() / reference.norm())
            if not error < 0.02:
                raise ArithmeticError(f"{name} of attention is {error:.1%} off")


def _forward_and_backward(
    states: list[Tensor], lengths: Tensor, key_lengths: Tensor, causal: bool, scale: float
) -> tuple[Tensor, ...]:
    query, key, value, grad = states
    queries, keys = Sequences.of(lengths), Sequences.of(key_lengths)
    out, lse = forward(query, key, value, queries, keys, causal, scale)
    return out, lse, *backward(grad, query, key, value, out, lse, queries, keys, causal, scale)


def forward(
    query: Tensor, key: Tensor, value: Tensor, queries: Sequences, keys: Sequences, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of each query sequence on the key sequence of the same number.

    (tokens, heads, head size) each, keys and values with fewer heads where heads share them. Returns the output and the
    log-sum-exp of the scores (heads, tokens) float32.
    """
    if query.device.type == "cpu":
        return _reference_forward(query, key, value, queries, keys, causal, scale)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    lengths = (queries.starts, keys.starts, queries.longest, keys.longest)
    if _flash_attn_varlen_forward is not None and _newer is None:
        out, lse, *_ = _flash_attn_varlen_forward(query, key, value, *lengths, 0.0, scale, causal=causal)
    else:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(query, key, value, *lengths, 0.0, causal, False, scale=scale)
    return out, lse


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    queries: Sequences, keys: Sequences, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value. `out` and `lse` may be those of a softmax over more keys than `key` holds."""
    if query.device.type == "cpu":
        return _reference_backward(grad, query, key, value, out, lse, queries, keys, causal, scale)
    grad, query, key, value, out = (states.contiguous() for states in (grad, query, key, value, out))
    lengths = (queries.starts, keys.starts, queries.longest, keys.longest)
    if _flash_attn_varlen_forward is not None and _newer is None:
        dq, dk, dv = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        _flash_attn_varlen_backward(
            grad, query, key, value, out, lse, dq, dk, dv, *lengths, 0.0, scale, causal, -1, -1, 0.0, None, False
        )
        return dq, dk, dv
    seed, offset = (query.new_empty(shape, dtype=torch.uint64) for shape in (2, ()))  # of dropout, which is 0
    return torch.ops.aten._flash_attention_backward(
        grad, query, key, value, out, lse, *lengths, 0.0, causal, seed, offset, scale=scale
    )


def _reference_forward(query, key, value, queries, keys, causal, scale):
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    query, key, value = map(_at_least_float32, (query, key, value))
    for q, k in _pairs(queries, keys):
        scores = _scores(query[q], _repeat(key[k], query), causal, scale)
        lse[:, q] = scores.logsumexp(-1).float()
        out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _repeat(value[k], query))
    return out, lse


def _reference_backward(grad, query, key, value, out, lse, queries, keys, causal, scale):
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    grad, query, key, value, out = map(_at_least_float32, (grad, query, key, value, out))
    mean = (grad * out).sum(-1).T[..., None]  # (heads, tokens, 1)
    for q, k in _pairs(queries, keys):
        each_key, each_value = _repeat(key[k], query), _repeat(value[k], query)
        share = (_scores(query[q], each_key, causal, scale) - lse[:, q, None]).exp()
        change = share * (torch.einsum("qhd,khd->hqk", grad[q], each_value) - mean[:, q]) * scale
        dq[q] = torch.einsum("hqk,khd->qhd", change, each_key)
        dk[k] = _sum_heads(torch.einsum("hqk,qhd->khd", change, query[q]), key)
        dv[k] = _sum_heads(torch.einsum("hqk,qhd->khd", share, grad[q]), value)
    return dq, dk, dv


def _at_least_float32(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _pairs(queries: Sequences, keys: Sequences) -> list[tuple[slice, slice]]:
    """The tokens of each query sequence and of its key sequence."""
    q, k = queries.starts.tolist(), keys.starts.tolist()
    return [(slice(*a), slice(*b)) for a, b in zip(pairwise(q), pairwise(k), strict=True)]


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    """(heads, queries, keys)."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if causal:
        scores.masked_fill_(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
    return scores


def _repeat(states: Tensor, query: Tensor) -> Tensor:
    """Key-value heads repeated for the query heads that share them."""
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


def _sum_heads(grad: Tensor, states: Tensor) -> Tensor:
    """The gradient of `_repeat`."""
    return grad.unflatten(1, (states.shape[1], -1)).sum(2)
