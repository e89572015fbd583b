"""Where groups and branches lie in rows of packed groups: the sequences and the masks of attention over them.

All of it follows from columns of a batch that the host has too. So no kernel's launch waits for the GPU: the host computes
where sequences begin, and sends that ahead.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from mtbi.llm.kernels import Sequences

#: Scores that a second call of dense attention must save: about what a call costs on two CPU cores.
WORTH_A_CALL = 10_000
BLOCK = 128  #: slots of a block of FlexAttention's mask
PADDING_PIECE = 64  #: slots of a sequence of padding, at most: what it computes is not read
Columns = tuple[Tensor, Tensor, Tensor]  #: `group`, `branch` and `position_ids`, each (rows, tokens)


class AttentionCall(NamedTuple):
    """One call of dense attention: a group's next `queries` queries on the group's first `keys` keys."""

    queries: int
    keys: int
    mask: Tensor | None  #: (queries, keys) added to the scores: 0 where a query attends to a key, else -inf; None = causal


class Stretch(NamedTuple):
    """Neighbouring slots of a row: a group, or padding, which has no calls."""

    size: int
    calls: list[AttentionCall]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor in host memory on another device. To a GPU it is sent from page-locked memory, and the host does not wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Packing:
    """The positions of groups and branches in a batch. Masks are made on first use and kept for the whole batch."""

    def __init__(
        self, group: Tensor, branch: Tensor, position_ids: Tensor, read: Tensor | None = None, on_host: Columns | None = None
    ) -> None:
        """`group`, `branch` and `position_ids` are `(rows, tokens)`, as in `mtbi.batches.batch.Batch`.

        `read` holds the flat positions (n,) whose last hidden state is used (`mtbi.llm.last_layer`); None = all. `on_host` are
        the same columns in host memory. Without them the host fetches them, for which it waits.
        """
        self.read, self.shape, self.device = read, tuple(group.shape), group.device
        self.columns: Columns = (group, branch, position_ids)
        self.on_host = on_host

    @cached_property
    def layout(self) -> Columns:
        """The columns in host memory."""
        group, branch, position = self.on_host or self.columns
        return group.cpu(), branch.cpu(), position.cpu()

    def stretches(self, window: int | None, dtype: torch.dtype) -> list[list[Stretch]]:
        """The stretches of each row, left to right. `window` is the reach of a sliding window in positions, None = none."""
        known: dict = self.__dict__.setdefault("_stretches", {})
        if (window, dtype) not in known:
            rows = zip(*self.layout[:2], *self.columns[1:], strict=True)
            known[window, dtype] = [_stretches(*row, window, dtype) for row in rows]
        return known[window, dtype]

    def blocks(self, window: int | None) -> BlockMask:
        """The mask of whole rows for FlexAttention. A padding slot attends to nothing."""
        masks: dict = self.__dict__.setdefault("_blocks", {})
        if window not in masks:
            group, branch, position = self.columns
            tokens = self.shape[1]

            def attends(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
                key_branch, query_branch = branch[row, key], branch[row, query]
                allowed = (group[row, query] == group[row, key]) & (group[row, key] >= 0) & (key <= query)
                allowed &= (key_branch == 0) | (key_branch == query_branch)
                return allowed if window is None else allowed & (position[row, query] - position[row, key] < window)

            some, of_some, every, of_every = (sent(torch.from_numpy(part), self.device) for part in self._key_blocks(window))
            masks[window] = BlockMask.from_kv_blocks(some, of_some, every, of_every, BLOCK, attends, (tokens, tokens))
        return masks[window]

    def _key_blocks(self, window: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which blocks of keys each block of queries attends to: some of their pairs, then all of them.

        Each as numbers `(rows, 1, blocks)`, and indices `(rows, 1, blocks, blocks)` of which the first so many count. A query
        attends to at most two ranges of slots: its own branch up to itself, and the prefix, of both what is in the window.
        """
        group, branch, position = (column.numpy() for column in self.layout)
        rows, tokens = self.shape
        slot = np.arange(tokens)
        new_group = np.diff(group, axis=1, prepend=-2) != 0
        new_branch = new_group | (np.diff(branch, axis=1, prepend=-1) != 0)
        own, start = (np.maximum.accumulate(np.where(new, slot, 0), axis=1) for new in (new_branch, new_group))
        prefix_end = np.maximum.accumulate(np.where(new_group, slot, np.where(branch == 0, slot + 1, 0)), axis=1)
        prefix_end[(branch == 0) | (group < 0)] = 0  # the own range is the prefix
        own_end = np.where(group < 0, 0, slot + 1)
        if window is not None:
            own, start = np.maximum(own, slot - window + 1), np.maximum(start, start + position - window + 1)
        begins = np.arange(0, tokens, BLOCK)
        pairs = sum(
            np.clip(np.minimum(stop[..., None], begins + BLOCK) - np.maximum(first[..., None], begins), 0, None)
            for first, stop in ((own, own_end), (start, prefix_end))
        )
        whole = np.zeros((rows, len(begins) * BLOCK, len(begins)), np.int64)
        whole[:, :tokens] = pairs
        count = whole.reshape(rows, 1, len(begins), BLOCK, len(begins)).sum(3)
        full = count == BLOCK * BLOCK
        some, every = (
            (chosen.sum(-1, dtype=np.int32), np.argsort(~chosen, axis=-1, kind="stable").astype(np.int32))
            for chosen in ((count > 0) & ~full, full)
        )
        return *some, *every

    @cached_property
    def longest_reach(self) -> int:
        """The largest position plus one: a sliding window of this size hides nothing."""
        return int(self.layout[2].max()) + 1

    @cached_property
    def segments(self) -> Sequences:
        """Every prefix, every branch and the padding as sequences, which cover all slots."""
        rows, tokens = self.shape
        group, branch = (column.numpy() for column in self.layout[:2])
        begins = np.ones((rows, tokens), bool)
        begins[:, 1:] = (group[:, 1:] != group[:, :-1]) | (branch[:, 1:] != branch[:, :-1])
        begins |= (group < 0) & (np.arange(tokens) % PADDING_PIECE == 0)
        return self._sequences(np.diff(np.append(np.flatnonzero(begins), rows * tokens)))

    @cached_property
    def crossing(self) -> tuple[Tensor, Sequences, Tensor, Sequences]:
        """Branches on their prefixes: query slots, their sequences (one a group), key slots, their sequences."""
        group, branch = (column.flatten().numpy() for column in self.layout[:2])
        slots = np.flatnonzero(group >= 0)
        in_prefix = branch[slots] == 0
        begins = np.diff(slots // self.shape[1] * self.shape[1] + group[slots], prepend=-1) != 0
        number = np.cumsum(begins) - 1  # of each slot's group in the batch
        sizes, prefixes = np.bincount(number), np.bincount(number[in_prefix], minlength=int(begins.sum()))
        both = (prefixes > 0) & (prefixes < sizes)
        queries, keys = (slots[own & both[number]] for own in (~in_prefix, in_prefix))
        return (
            sent(torch.from_numpy(queries), self.device),
            self._sequences((sizes - prefixes)[both]),
            sent(torch.from_numpy(keys), self.device),
            self._sequences(prefixes[both]),
        )

    def _sequences(self, lengths: np.ndarray) -> Sequences:
        """Sequences of these lengths, on the device."""
        starts, longest = Sequences.of(torch.from_numpy(lengths))
        return Sequences(sent(starts, self.device), longest)


def _stretches(
    group: Tensor, host_branch: Tensor, branch: Tensor, position: Tensor, window: int | None, dtype: torch.dtype
) -> list[Stretch]:
    """The stretches of a row, from its columns (tokens,); the first two are in host memory."""
    numbers, sizes = (column.tolist() for column in group.unique_consecutive(return_counts=True))
    prefixes = [int((own == 0).sum()) for own in host_branch.split(sizes)]
    columns = zip(numbers, sizes, prefixes, branch.split(sizes), position.split(sizes), strict=True)
    return [
        Stretch(size, _calls(prefix, own, at, window, dtype) if number >= 0 else [])
        for number, size, prefix, own, at in columns
    ]


def _calls(prefix: int, branch: Tensor, position: Tensor, window: int | None, dtype: torch.dtype) -> list[AttentionCall]:
    """The calls for a group with so many slots in its prefix, from its columns (size,)."""
    size = len(branch)
    allowed = (branch == 0) | (branch == branch[:, None])
    allowed &= torch.ones(size, size, dtype=torch.bool, device=branch.device).tril()
    if window is not None:
        allowed &= position[:, None] - position < window
    mask = torch.zeros(size, size, dtype=dtype, device=branch.device).masked_fill_(~allowed, -torch.inf)
    if prefix == size and window is None:
        return [AttentionCall(size, size, None)]
    if window is not None or prefix * (size - prefix // 2) < WORTH_A_CALL:
        return [AttentionCall(size, size, mask)]
    return [AttentionCall(prefix, prefix, None), AttentionCall(size - prefix, size, mask[prefix:])]
