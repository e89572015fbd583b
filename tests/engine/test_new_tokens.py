"""Runs whose LLM gets new tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtbi.engine import checkpoint
from mtbi.use.open_run import open_run

TOKENS = "model.new_tokens=[<a>,<b>,<c>,<d>]"
CONSTANT_RATE = ["train.learning_rate=1e-3", "train.min_learning_rate=1e-3"]  # the same for runs of any length


@pytest.mark.slow
def test_a_run_with_new_tokens_resumes_and_opens(
    launch: Callable[..., list[str]], run: Callable[..., str], tmp_path: Path
) -> None:
    """Shards made without the tokens are accepted, and the checkpoint holds their rows instead of a matrix.

    The same run predicts two tokens from each position, and logs the loss of the second.
    """
    for folder, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        run(launch(tmp_path / folder, TOKENS, "loss.later_tokens=1", *CONSTANT_RATE, f"train.steps={steps}"))
    folders = [checkpoint.latest_valid(tmp_path / name) for name in ("whole", "parts")]
    whole, parts = (checkpoint.load_trainable(folder) for folder in folders if folder)
    rows = {name: value.shape[0] for name, value in parts.items() if name.startswith("llm.")}
    assert set(parts) - set(rows) - {"head.later.layers.0.weight"} == {name for name in parts if name.startswith("adapter.")}
    assert rows
    assert all(name.endswith(".new_rows") and count == 4 for name, count in rows.items())
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    opened = open_run(tmp_path / "parts", "latest")
    assert opened.chat.decode(opened.chat.answer_ids("<a>one")).replace(" ", "") == "<a>one"
    logged = EventAccumulator(str(tmp_path / "whole" / "tensorboard")).Reload()
    assert len(logged.Scalars("train/loss_token_2")) == 4
