from __future__ import annotations

import json

import pytest

from mtbi import recipe as recipes
from mtbi.batches.plan import Group, Position, Row, Step
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.checkpointing import Progress
from mtbi.recipe import DataConfig

STEP = Step(Position(), Position(0, 1), [Row((Group(0, (0,), b"", 9, 16_000, 2, 2.0),) * 100)], 200.0, 200, 900, 100.0, 0.5)


def test_all_of_it_survives_a_restart() -> None:
    progress = Progress()
    progress.advance(STEP, 3)
    progress.counts["rollbacks"] = 2
    progress.guard = {"losses": [0.1, 1 / 3], "bad_steps": 1, "spikes": 4}
    state = json.loads(json.dumps(progress.to_state(recipes.load("demo"), 2)))
    assert Progress.of(Snapshot({}, {}, state)) == progress
    assert (progress.utterances, progress.counts["unreadable_utterances"], progress.bad_steps) == (100, 3, 1)


def test_checkpoints_of_older_versions_are_read() -> None:
    old = {"step": 7, "position": Position(1, 2).to_json(), "audio_seconds": 3.5, "world": 1}
    progress = Progress.of(Snapshot({}, {}, old))
    assert (progress.step, progress.utterances, progress.bad_steps) == (7, 0, 0)
    assert set(progress.counts.values()) == {0}


@pytest.mark.parametrize(
    ("corpus", "steps", "lost", "ends"),
    [(200, 1, 2, False), (200, 1, 3, True), (10**6, 1, 100, False), (10**6, 1, 101, True), (10**6, 200, 200, False)],
)
def test_few_samples_may_be_lost(corpus: int, steps: int, lost: int, ends: bool) -> None:
    progress = Progress()
    for _ in range(steps):
        progress.advance(STEP, 0)
    progress.counts["unreadable_utterances"] = lost
    assert bool(progress.too_many_unreadable(DataConfig(), corpus)) == ends
    assert progress.too_many_unreadable(DataConfig(max_unreadable_share=1.0), corpus) == ""
