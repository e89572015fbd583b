"""`mtbi reproduce` as a user runs it, on a grid of his own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtbi.cli import main

GRID = """
recipe: demo
seeds: [1]
evaluate: {{test: "{shards}"}}
cascade: demo
dialogues: 20
fields:
  - "data.shards=[{shards}]"
  - plan.tasks=[repeat, count, last, maximum, sort]
  - train.steps=4
  - train.eval_every_steps=0
  - train.checkpoint_every_steps=4
  - plan.window_utterances=64
  - plan.passes_per_epoch=0
arms:
  mixed: {{label: interleaved, fields: []}}
  plain: {{label: speech only, like: mixed, fields: [interleave.share=0]}}
less_speech: {{arms: [mixed], minutes: [0.5], seeds: [1]}}
compare: {{arm: mixed, with: [plain]}}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_grid_is_run_resumed_and_reported(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(GRID.format(shards=shard_folder))
    command = [sys.executable, "-m", "mtbi.cli", "reproduce", str(out), "--grid", str(path), "--parallel", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = (out / "report.md").read_text()
    assert "3 of 3 runs are finished" in report
    assert "| mixed " in report
    assert "over plain" in report
    assert "cascade" in report
    assert re.search(r"^\| speech only +\| +– \|.*\| +(not reached|at most \S+ min) \|$", report, re.MULTILINE)
    for name in ("accuracy_by_speech", "accuracy_by_task", "similarity"):
        assert f"plots/{name}.png" in report
        assert (out / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((out / "results.json").read_text())
    runs = {run["run"]: run for run in numbers["runs"]}
    assert set(runs) == {"mixed/seed-1", "plain/seed-1", "mixed/seed-1-0.5-minutes"}
    assert runs["mixed/seed-1"]["audio_hours"] > 0
    assert runs["mixed/seed-1-0.5-minutes"]["corpus_minutes"] == 0.5 < runs["mixed/seed-1"]["corpus_minutes"]
    cascade = numbers["arms"]["mixed"]["test"]["never-trained tasks"]["of_cascade"]["value"]
    assert 0 <= cascade < 1  # four steps teach little, and the recogniser knows espeak-ng's digits
    events = EventAccumulator(str(out / "tensorboard" / "plain_seed-1"))
    events.Reload()
    assert any("never-trained tasks" in tag for tag in events.Tags()["scalars"])
    assert "_hparams_/session_start_info" in events.summary_metadata

    before = (out / "runs/plain/seed-1/log.txt").read_text()
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", str(out), "--grid", str(path), "--report-only"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.md")
    assert (out / "runs/plain/seed-1/log.txt").read_text() == before
