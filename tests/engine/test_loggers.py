from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mtbi import recipe as recipes
from mtbi.engine import loggers
from mtbi.engine.log import Metrics
from mtbi.errors import UserError
from mtbi.model.flops import LLMSize


def metrics(run_dir: Path, first: bool = True) -> Metrics:
    recipe = recipes.load("demo", [f"run_dir={run_dir}", "train.loggers=[jsonl]"])
    return Metrics(recipe, ["repeat"], first, 1, LLMSize(1000, 800, 300), torch.device("cpu"))


def test_numbers_are_lines_of_json_and_a_restart_goes_on_with_them(tmp_path: Path) -> None:
    for step, loss in ((10, 1.5), (20, float("nan"))):
        one = metrics(tmp_path)
        one.scalars({"train/loss": loss, "eval/agreement": 0.5}, step)
        one.close()
    metrics(tmp_path, first=False).scalars({"train/loss": 9.0}, 30)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 10, "train/loss": 1.5, "eval/agreement": 0.5},
        {"step": 20, "train/loss": None, "eval/agreement": 0.5},
    ]


def test_a_logger_that_fails_is_left_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = metrics(tmp_path)
    assert one.loggers
    lost = loggers.JsonLines(recipes.load("demo", [f"run_dir={tmp_path / 'lost'}"]), {})
    lost.file.close()  # as if its disk were gone
    one.loggers.open = {"lost": lost, **one.loggers.open}
    for step in (1, 2):
        one.scalars({"train/loss": 1.0}, step)
    one.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count("lost failed and gets nothing more") == 1


def test_a_logger_that_cannot_be_opened_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").mkdir()  # no file can be opened there
    one = metrics(tmp_path)
    one.scalars({"train/loss": 1.0}, 1)
    one.close()
    assert "jsonl cannot be opened and gets nothing" in caplog.text


def test_a_logger_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"train\.loggers: 'jsonk' is unknown: did you mean 'jsonl'"):
        loggers.find(["jsonk"])
    monkeypatch.setattr(loggers.WeightsAndBiases, "package", "no_such_package")
    with pytest.raises(UserError, match="wandb needs the package no_such_package: pip install no_such_package"):
        loggers.find(["jsonl", "wandb"])
