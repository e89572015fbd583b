"""Attention over rows of packed groups, as three back ends of transformers' attention interface.

A token attends to the earlier tokens of its group's prefix and of its own branch. All back ends compute the same function,
attention sinks (gpt-oss) included:

- `dense` is scaled-dot-product attention with a mask, one group after the other. Where it saves enough, the prefix has a causal
  call of its own.
- `flash` is two variable-length kernel calls: every prefix and every branch causally on itself, and every branch on its prefix.
  Their results are merged by their log-sum-exp. Padding is a sequence too, so that rows are computed as they lie in memory.
- `flex` is PyTorch's FlexAttention (arXiv 2412.05496): one compiled kernel over whole rows, which skips masked blocks.

The packing is passed as the forward keyword `packing`. Without one (generation) the back ends are transformers' own `sdpa`,
with sinks added. On CPUs the key heads are not repeated, which would take most of a step's time. Packed rows have no dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from mtbi.errors import UserError
from mtbi.llm import kernels
from mtbi.llm.packing import Packing

#: Names in transformers. No name contains "flash": transformers 5 would look for a kernel of its own.
DENSE, FLASH, FLEX = "mtbi_dense", "mtbi_varlen", "mtbi_flex"
#: Arguments of attention calls that do not change the result. Others are refused if they have a value.
NEUTRAL = {"position_ids", "cache_position", "use_cache", "return_dict", "is_causal"}
NEUTRAL |= {"output_attentions", "output_hidden_states", "output_router_logits"}

_attend = functional.scaled_dot_product_attention


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None, scaling: float | None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`query` is (rows, heads, tokens, size), `key` and `value` have key-value heads. Returns (rows, tokens, heads, size).

    `window` is the reach of a sliding window in positions, None where it masks nothing. `sinks` (heads,) are the scores of one
    more key for each head, whose value is zero. Values may be narrower than queries and keys.
    """
    if query.device.type != "cpu":  # the fast kernels for GPUs that take a mask want a key head for each query head
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    rows = []
    # split, because the backward pass of a slice would fill a whole tensor with zeros
    columns = (states.split(1) for states in (query, key, value))
    for stretches, *row in zip(packing.stretches(window, query.dtype), *columns, strict=True):
        sizes, outputs = [stretch.size for stretch in stretches], []
        for stretch, q, k, v in zip(stretches, *(states.split(sizes, 2) for states in row), strict=True):
            if not stretch.calls:
                unread = q.mean(-1, keepdim=True) + (k.mean(-1, keepdim=True) + v).mean(1, keepdim=True)
                outputs.append(0 * unread)  # the tensors stay in the graph even if everything is padding
                continue
            for call, own in zip(stretch.calls, q.split([call.queries for call in stretch.calls], 2), strict=True):
                keys = (k, v) if call.keys == stretch.size else (k[:, :, : call.keys], v[:, :, : call.keys])
                outputs.append(_attend_with_sinks(own, *keys, call.mask, call.mask is None, scaling, sinks))
        rows.append(torch.cat(outputs, 2))
    return torch.cat(rows).transpose(1, 2)


def _attend_with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scaling: float | None, sinks: Tensor | None
) -> Tensor:
    """Scaled-dot-product attention; `mask` is boolean or added to the scores. Returns (rows, heads, tokens, value size)."""
    if sinks is None:
        return _attend(query, key, value, mask, is_causal=causal, scale=scaling, enable_gqa=True)
    added = query.new_zeros(query.shape[2], key.shape[2]) if mask is None else mask
    if added.dtype == torch.bool:
        added = torch.zeros_like(added, dtype=query.dtype).masked_fill(~added, -torch.inf)
    if causal:
        added = added.masked_fill(torch.ones_like(added, dtype=torch.bool).triu(1), -torch.inf)
    added = added.expand(len(query), query.shape[1], -1, -1)
    sink = sinks.to(added.dtype)[None, :, None, None].expand(*added.shape[:3], 1)
    key, value = (functional.pad(states, (0, 0, 0, 1)) for states in (key, value))  # the score of a key of zeros is the mask's
    return _attend(query, key, value, torch.cat([added, sink], -1), scale=scaling, enable_gqa=True)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None, scaling: float | None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `dense_attention`. Raises UserError where a sliding window would mask something, which the two calls cannot do."""
    if value.shape[-1] != query.shape[-1]:
        raise UserError(
            f"model.attention=flash: the LLM's value heads have {value.shape[-1]} numbers, its query heads "
            f"{query.shape[-1]}; use model.attention=flex or dense"
        )
    if window is not None:
        raise UserError(
            f"model.attention=flash: the LLM's sliding window ({window}) is shorter than a dialogue "
            f"({packing.longest_reach} tokens); use model.attention=flex or dense"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = SharedPrefixAttention.apply(*(_flat(states) for states in (query, key, value)), packing, scale, sinks)
    return out.unflatten(0, packing.shape)


def flexible_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None, scaling: float | None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `dense_attention`, which replaces it where a gradient is needed on a CPU: FlexAttention has none there."""
    if query.device.type == "cpu" and (query.requires_grad or key.requires_grad or value.requires_grad):
        return dense_attention(query, key, value, packing, window, scaling, sinks)
    kernel = _flex_kernel(query.device.type)
    settings = {"block_mask": packing.blocks(window), "scale": scaling, "enable_gqa": True}
    if sinks is None:
        return kernel(query, key, value, **settings).transpose(1, 2)
    out, more = kernel(query, key, value, **settings, return_aux=AuxRequest(lse=True))
    share = torch.sigmoid(more.lse - sinks[:, None].float())  # of the softmax that the keys keep beside the sink
    return (out * share[..., None]).to(out.dtype).transpose(1, 2)


@cache
def _flex_kernel(device: str) -> Callable[..., Any]:
    """FlexAttention, compiled for speed on a GPU. On a CPU, where only tests use it, it is not compiled."""
    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel) if device == "cuda" else kernel


class SharedPrefixAttention(torch.autograd.Function):
    """The two kernel calls and their merge.

    The backward pass runs the kernel's backward of each call with the merged output and log-sum-exp, which gives the exact
    gradient of the joint softmax, as in ring attention (arXiv 2310.01889).
    """

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, sinks: Tensor | None = None
    ) -> Tensor:
        """(slots, heads, head size) each; keys and values may have fewer heads. `sinks` (heads,) have no gradient."""
        segments = packing.segments
        out, lse = kernels.forward(query, key, value, segments, segments, True, scale)
        queries, query_sequences, keys, key_sequences = packing.crossing
        if len(queries):
            more, more_lse = kernels.forward(
                query[queries], key[keys], value[keys], query_sequences, key_sequences, False, scale
            )
            joint = torch.logaddexp(lse[:, queries], more_lse)
            own = (lse[:, queries] - joint).exp().T[..., None] * out[queries]
            out[queries] = (own + (more_lse - joint).exp().T[..., None] * more).to(out.dtype)
            lse[:, queries] = joint
        if sinks is not None:
            joint = torch.logaddexp(lse, sinks[:, None].float())
            out = ((lse - joint).exp().T[..., None] * out).to(out.dtype)
            lse = joint
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.packing, ctx.scale = packing, scale
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """Gradients of query, key and value."""
        [grad] = grads
        query, key, value, out, lse = ctx.saved_tensors
        segments, grad = ctx.packing.segments, grad.contiguous()
        dq, dk, dv = kernels.backward(grad, query, key, value, out, lse, segments, segments, True, ctx.scale)
        queries, query_sequences, keys, key_sequences = ctx.packing.crossing
        if len(queries):
            more_dq, more_dk, more_dv = kernels.backward(
                grad[queries], query[queries], key[keys], value[keys], out[queries], lse[:, queries].contiguous(),
                query_sequences, key_sequences, False, ctx.scale,
            )  # fmt: skip
            dq.index_add_(0, queries, more_dq)
            dk.index_add_(0, keys, more_dk)
            dv.index_add_(0, keys, more_dv)
        return dq, dk, dv, None, None, None


def _as_back_end(packed: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """The function that transformers calls: `packed` where there is a packing, else its own `sdpa`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        _refuse_unknown(module, kwargs | {"softcap": softcap})
        if packing is None and s_aux is None and query.device.type != "cpu":
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        if packing is None:
            causal = attention_mask is None and query.shape[2] > 1
            return _attend_with_sinks(query, key, value, attention_mask, causal, scaling, s_aux).transpose(1, 2), None
        chunk = getattr(getattr(module, "config", None), "attention_chunk_size", None)
        if chunk is not None and chunk < packing.longest_reach:
            raise UserError(
                f"{type(module).__name__}: the LLM's attention chunk ({chunk} tokens) is shorter than a dialogue "
                f"({packing.longest_reach} tokens), which packed rows cannot do: lower plan.max_audio_seconds"
            )
        hides = sliding_window is not None and sliding_window < packing.longest_reach
        states = packed(query, key, value, packing, sliding_window if hides else None, scaling, s_aux)
        return states.contiguous(), None  # some models take a view of it

    return attend


def _refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raises UserError for arguments of an attention call that are not supported: ignoring them would change the result."""
    unknown = [name for name, value in kwargs.items() if name not in NEUTRAL and value is not None]
    if kwargs.get("is_causal") is False:
        unknown.append("is_causal=False")
    if unknown:
        raise UserError(
            f"{type(module).__name__}: attention with {', '.join(sorted(unknown))} is not supported: choose another LLM "
            "(docs/your-models.md)"
        )


def register() -> None:
    """Register the back ends with transformers. It may be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    for name, function in ((DENSE, dense_attention), (FLASH, flash_attention), (FLEX, flexible_attention)):
        # Packings differ in every batch, so a compiled layer (model.compile) calls attention uncompiled.
        AttentionInterface.register(name, torch.compiler.disable(_as_back_end(function)))
        AttentionMaskInterface.register(name, sdpa_mask)  # for generation: packed calls bring a mask of their own


def _flat(states: Tensor) -> Tensor:
    """(rows, heads, tokens, size) to (rows * tokens, heads, size)."""
    return states.transpose(1, 2).flatten(0, 1)
