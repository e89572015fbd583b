"""Training on speech and text alone together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.ranks import MISTAKE
from mtbi.engine import checkpoint


@pytest.mark.slow
def test_sums_by_source_are_shares_of_the_sums(
    launch: Callable[..., list[str]], run: Callable[..., str], shard_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    """On two processes under ZeRO-3, with more sources in the evaluation than in training."""
    both = f"[{shard_folder},{text_folder}]"
    fields = ["train.eval_every_steps=2", "train.steps=2", "train.eval_utterances=1000", "train.sample_dialogues=0"]
    output = run(launch(tmp_path, f"data.eval_shards={both}", *fields))
    pattern = (
        r"agreement (\S+)% of (\d+) answer tokens\n  digits: loss \S+, agreement (\S+)%\n  shards: loss \S+, agreement (\S+)%"
    )
    shown = re.findall(pattern, output)
    assert len(shown) == 1
    for agreement, _, digits, text in shown:
        low, high = sorted((float(digits), float(text)))
        assert low <= float(agreement) <= high
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "eval_source_loss/digits" in found.Tags()["scalars"]
    assert "source_loss/digits" not in found.Tags()["scalars"]  # one source in training


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
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {tag for tag in found.Tags()["scalars"] if tag.startswith("source_")} == {
        f"source_{what}/{name}" for what in ("loss", "agreement") for name in ("digits", "shards")
    }
    assert not [tag for tag in found.Tags()["scalars"] if tag.startswith("eval_source_")]  # one source
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert checkpoint.load(newest).state["step"] == 2
    assert "going on from" in run(launch(tmp_path, *fields(2.5, 3), processes=1, stage=1))
    refused = run(launch(tmp_path, *fields(0.5, 4), processes=1, stage=1), status=MISTAKE)
    assert "data.weights gives the shards other weights" in refused
