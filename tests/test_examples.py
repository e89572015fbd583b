"""The scripts in `examples/` run (`ask.py`: see test_api.py)."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_step.py"


@pytest.mark.parametrize("prepared", [False, True])
def test_one_training_step(
    prepared: bool, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *([str(shard_folder)] if prepared else [])])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    [(before, after)] = re.findall(r"loss (\S+), after one step (\S+)\n", printed)
    assert float(after) < float(before)
    assert printed.splitlines()[-1].startswith("answer: ")
    assert ("kept 60 utterances" in printed) != prepared
