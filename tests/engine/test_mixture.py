"""Training on speech and text alone together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.ranks import MISTAKE
from mtbi.engine import checkpoint


@pytest.mark.slow
def test_a_mixture_of_speech_and_text_trains_and_goes_on(
    launch: Callable[..., list[str]], run: Callable[..., str], shard_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    def fields(weight: float, steps: int) -> list[str]:
        weights = f"data.weights={{{text_folder}: {weight}}}"
        shards = f"data.shards=[{shard_folder},{text_folder}]"
        return [shards, weights, f"data.eval_shards=[{text_folder}]", "train.eval_every_steps=2", f"train.steps={steps}"]

    first = run(launch(tmp_path, *fields(2.5, 2), processes=1, stage=1))
    assert "68 utterances" in first
    assert "eval at step 2: loss" in first
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert checkpoint.load(newest).state["step"] == 2
    assert "going on from" in run(launch(tmp_path, *fields(2.5, 3), processes=1, stage=1))
    refused = run(launch(tmp_path, *fields(0.5, 4), processes=1, stage=1), status=MISTAKE)
    assert "data.weights gives the shards other weights" in refused
