"""A batch without some of its sound slots: those that the LLM need not read (`model.adapter.drop_silence`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtbi.batches.batch import AUDIO_FIELDS, WIDTH_UNIT, Batch


def without(batch: Batch, dropped: Tensor) -> Batch:
    """The batch without the sound slots `dropped` (frames,) bool. What stands after them moves up, in rows and positions.

    The result is as if the batch had been built without these frames. Its width depends on the data, so a GPU waits for it.
    """
    width = batch.group.shape[1]
    kept = (batch.group >= 0).index_put((batch.audio_slot // width, batch.audio_slot % width), ~dropped)
    slots = kept.cumsum(1) - 1  # the new slot of each kept one
    longest = max(1, int(slots[:, -1].max()) + 1)
    new_width = min(width, -(-longest // WIDTH_UNIT) * WIDTH_UNIT)
    # The kept slots first, in their order; then padding.
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, :new_width]
    used = kept.gather(1, order)

    def moved(values: Tensor, padding: int) -> Tensor:
        return values.gather(1, order).masked_fill(~used, padding)

    def moved_slots(flat: Tensor) -> Tensor:
        row, slot = flat // width, flat % width
        return row * new_width + slots[row, slot]

    columns: dict[str, Any] = {
        "token_ids": moved(batch.token_ids, 0),
        "position_ids": moved(batch.position_ids - missing_before(batch, kept), 0),
        "group": moved(batch.group, -1),
        "branch": moved(batch.branch, 0),
        "target_slot": moved_slots(batch.target_slot),
    }
    heard = {name: getattr(batch, name)[~dropped] for name in AUDIO_FIELDS}
    return replace(batch, **columns, **heard | {"audio_slot": moved_slots(heard["audio_slot"])})


def missing_before(batch: Batch, kept: Tensor) -> Tensor:
    """How many slots that are not `kept` a slot's position counts, `(rows, tokens)`: those in its prefix and in its branch."""
    gone = (~kept & (batch.group >= 0)).long()
    before = gone.cumsum(1)
    changes = functional.pad(batch.group.diff(dim=1).ne(0) | batch.branch.diff(dim=1).ne(0), (1, 0), value=True)
    index = torch.arange(gone.shape[1], device=gone.device)
    start = torch.where(changes, index, 0).cummax(1).values  # of the slot's prefix or branch
    own = before - before.gather(1, start) + gone.gather(1, start)
    group, in_prefix = batch.group.long().clamp(min=0), batch.branch == 0
    prefix = torch.zeros_like(gone).scatter_add(1, group, gone * in_prefix)
    return own + torch.where(in_prefix, 0, prefix.gather(1, group))
