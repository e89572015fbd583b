"""Sequences of attention, against a direct search of the columns."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from mtbi.batches.batch import Batch
from mtbi.llm.packing import PADDING_PIECE, Packing


def runs(batch: Batch) -> list[tuple[tuple[int, int, int], list[int]]]:
    """(row, group, branch) and the slots of every prefix, branch and stretch of padding, in order."""
    tokens = batch.group.shape[1]
    keys = [
        (row, int(batch.group[row, at]), int(batch.branch[row, at])) for row in range(len(batch.group)) for at in range(tokens)
    ]
    return [(key, list(slots)) for key, slots in groupby(range(len(keys)), key=keys.__getitem__)]


@pytest.mark.parametrize("width", [48, 200])
def test_segments_cover_all_slots_and_padding_lies_in_short_ones(pack_rows, width: int) -> None:
    batch = pack_rows([[(900, [6, 5, 4]), (320, [4])], [], [(2000, [8, 3]), (500, []), (640, [5, 5])]], width)
    expected: list[int] = []
    for (_, group, _), slots in runs(batch):
        if group >= 0:
            expected.append(slots[0])
        else:
            expected += [slot for slot in slots if slot == slots[0] or slot % width % PADDING_PIECE == 0]
    starts, longest = Packing(batch.group, batch.branch, batch.position_ids).segments
    assert starts.dtype == torch.int32
    assert starts.tolist() == [*expected, batch.group.numel()]
    assert longest == max(map(len, (range(*pair) for pair in zip(starts.tolist(), starts.tolist()[1:], strict=False))))


def test_branches_cross_to_the_prefix_of_their_group(packed: Batch) -> None:
    queries, query_sequences, keys, key_sequences = Packing(packed.group, packed.branch, packed.position_ids).crossing
    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for (row, group, branch), slots in runs(packed):
        if group >= 0:
            groups.setdefault((row, group), ([], []))[branch == 0].extend(slots)
    crossing = [(own, prefix) for own, prefix in groups.values() if own and prefix]
    assert len(crossing) == len(groups) - 1  # one group has no branch
    for index, (found, sequences) in enumerate(((queries, query_sequences), (keys, key_sequences))):
        assert found.tolist() == [slot for pair in crossing for slot in pair[index]]
        assert sequences.starts.diff().tolist() == [len(pair[index]) for pair in crossing]


def test_the_columns_on_the_host_give_the_same(packed: Batch) -> None:
    columns = (packed.group, packed.branch, packed.position_ids)
    known = Packing(*(column.to("meta") for column in columns), on_host=columns)
    own = Packing(*columns)
    assert known.longest_reach == own.longest_reach == int(packed.position_ids.max()) + 1
    assert known.segments.longest == own.segments.longest
    assert known.segments.starts.device.type == "meta"


@pytest.mark.parametrize("window", [None, 400, 150, 9, 1])
def test_block_masks_are_those_that_flex_attention_finds_itself(pack_rows, window: int | None) -> None:
    long = [(320 * 150, [40, 200]), (320 * 300, []), (900, [6, 5, 4]), (320 * 20, [130])]
    for batch in (pack_rows([long, [], [(320 * 260, [300])]], 1000), pack_rows([[(900, [6])], []], 40)):
        packing = Packing(batch.group, batch.branch, batch.position_ids)
        made = packing.blocks(window)
        rows, tokens = packing.shape
        expected = create_block_mask(made.mask_mod, rows, None, tokens, tokens, "cpu")
        assert made.seq_lengths == expected.seq_lengths
        assert torch.equal(made.to_dense(), expected.to_dense())
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks", "kv_indices", "q_indices"):
            assert torch.equal(getattr(made, name), getattr(expected, name)), name
        assert bool(made.full_kv_num_blocks.any()) == (tokens > 100 and window in (None, 400))
