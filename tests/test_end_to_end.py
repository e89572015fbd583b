"""`mtbi demo` as a user runs it: on real recordings to the promised accuracy, and on espeak-ng's voices for a short while."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtbi.engine import checkpoint

MTBI = str(Path(sys.executable).with_name("mtbi"))


def demo(*arguments: str) -> str:
    done = subprocess.run([MTBI, "demo", *arguments], capture_output=True, text=True, check=False, timeout=2400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def report(run_dir: Path) -> dict[tuple[str, str], dict]:
    (path,) = (run_dir / "evaluation").glob("*/report.json")
    cells = json.loads(path.read_text())["cells"]
    return {(cell["group"], cell["tasks"]): cell for cell in cells if (cell["wording"], cell["prompt"]) == ("all", "after")}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_on_real_recordings_reaches_what_the_readme_says(speech: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    output = demo("--speech", str(speech / "fsdd"), f"run_dir={run_dir}")
    lines = report(run_dir)
    trained, new = lines["test_known", "trained tasks"], lines["test_known", "new tasks"]
    assert trained["dialogues"] + new["dialogues"] + lines["test_known", "trained tasks, other format"]["dialogues"] >= 2000
    assert trained["kept"]["value"] >= 0.95
    assert new["kept"]["value"] >= 0.93
    assert lines["test_unseen", "trained tasks"]["kept"]["value"] >= 0.65
    assert lines["test_unseen", "new tasks"]["kept"]["value"] >= 0.65
    assert max(trained["silence"], new["silence"]) < 0.3  # the prompt alone does not give the answers away
    assert "speech LLM" in output
    recording = next((run_dir / "data" / "test_known" / "audio").glob("*.flac"))
    chat = [MTBI, "chat", str(run_dir), "--audio", str(recording), "how many digits are there"]
    answer = subprocess.run(chat, capture_output=True, text=True, check=True).stdout
    assert set(answer.split()) & {"two", "three", "four", "five", "six"}
    exported = tmp_path / "exported"
    subprocess.run([MTBI, "export", str(run_dir), str(exported), "--layout", "merged"], check=True)
    assert "test_known" in (exported / "README.md").read_text()  # what the demo measured
    ask = "import mtbi.hf, sys, transformers; ask = transformers.pipeline('audio-text-to-text', model=sys.argv[1]); "
    ask += "print(ask({'audio': sys.argv[2], 'text': sys.argv[3]})['generated_text'])"
    command = [sys.executable, "-c", ask, str(exported), str(recording), "how many digits are there"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == answer.strip()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_without_recordings_speaks_by_itself_and_reuses_what_is_there(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fields = ["--dialogues", "240", f"run_dir={run_dir}", "train.steps=40", "train.eval_every_steps=40"]
    first = demo(*fields)
    assert "espeak" in (run_dir / "data" / "source.json").read_text()
    assert report(run_dir)["test_known", "trained tasks"]["dialogues"] > 40
    shard = next((run_dir / "data" / "train" / "shards").glob("*.mds"))
    (answers,) = (run_dir / "evaluation").glob("*/answers.jsonl")
    made, asked, newest = shard.stat().st_mtime_ns, answers.stat().st_mtime_ns, checkpoint.latest_valid(run_dir)
    second = demo(*fields)
    assert "speech LLM" in first
    assert "speech LLM" in second
    assert (shard.stat().st_mtime_ns, answers.stat().st_mtime_ns) == (made, asked)
    assert checkpoint.latest_valid(run_dir) == newest
