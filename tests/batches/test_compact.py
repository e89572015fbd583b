"""Sound slots taken out of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import ROWS, pack

from mtbi.batches.batch import WIDTH_UNIT, Batch
from mtbi.batches.compact import without

Sequences = dict[tuple[int, int, int], list[tuple[int, int]]]


def numbered(batch: Batch, sound: torch.Tensor) -> Batch:
    """The batch with another token at each slot, and sound in the slots `sound`."""
    ids = 1 + torch.arange(batch.token_ids.numel()).view_as(batch.token_ids)
    return replace(batch, token_ids=ids, audio_slot=sound, audio_clip=torch.zeros_like(sound), audio_frame=sound)


def sequences(batch: Batch) -> Sequences:
    """(token, position) of every slot, by row, group and branch."""
    found: Sequences = {}
    for row, slot in (batch.group >= 0).nonzero().tolist():
        key = (row, int(batch.group[row, slot]), int(batch.branch[row, slot]))
        found.setdefault(key, []).append((int(batch.token_ids[row, slot]), int(batch.position_ids[row, slot])))
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_batch_is_as_if_the_frames_had_never_been(share: float) -> None:
    """Sound in the prefix and, as with the prompt before it, in the branches."""
    packed = pack(ROWS, 48)
    filled = (packed.group.flatten() >= 0).nonzero()[:, 0]
    sound = filled[~torch.isin(filled, packed.target_slot) & (packed.position_ids.flatten()[filled] > 1)]
    batch = numbered(packed, sound)
    dropped = torch.rand(len(sound), generator=torch.Generator().manual_seed(0)) < share
    made, gone = without(batch, dropped), set(batch.token_ids.flatten()[sound[dropped]].tolist())
    kept = {key: [token for token, _ in own if token not in gone] for key, own in sequences(batch).items()}
    found = sequences(made)
    for key, own in kept.items():
        start = len(kept[key[0], key[1], 0]) if key[2] else 0
        assert found.get(key, []) == list(zip(own, range(start, start + len(own)), strict=True))
    assert found.keys() <= kept.keys()
    tokens = made.token_ids.flatten()
    assert torch.equal(tokens[made.target_slot], batch.token_ids.flatten()[batch.target_slot])
    assert torch.equal(tokens[made.audio_slot], batch.token_ids.flatten()[sound[~dropped]])
    assert torch.equal(made.audio_frame, sound[~dropped])
    padding = made.group < 0
    assert not any(values[padding].any() for values in (made.token_ids, made.position_ids, made.branch))


def test_rows_become_narrower() -> None:
    packed = pack(ROWS, 48)
    wide = {name: torch.nn.functional.pad(getattr(packed, name), (0, 200), value=-(name == "group")) for name in (
        "token_ids", "position_ids", "group", "branch")}  # fmt: skip
    made = without(replace(packed, **wide), torch.zeros(len(packed.audio_slot), dtype=torch.bool))
    assert made.group.shape == (2, WIDTH_UNIT)
    assert torch.equal(made.group[:, :48], packed.group)


def test_a_batch_without_sound() -> None:
    empty = pack(ROWS, 48).clips_alone()
    made = without(empty, torch.zeros(0, dtype=torch.bool))
    assert torch.equal(made.group, empty.group)
