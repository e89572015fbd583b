"""The `mtbi` command as a user meets it: run in a process of its own where that matters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi import recipe
from mtbi.cli import main

REPOSITORY = Path(__file__).parents[1]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`mtbi …` as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "mtbi.cli", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )


def one_message(captured: pytest.CaptureResult[str]) -> str:
    """The message on standard error, without progress bars."""
    lines = [line for line in captured.err.splitlines() if line.startswith("mtbi: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    heavy = "[name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules]"
    loaded = f"import sys, mtbi.cli; mtbi.cli.build_parser(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mistake_is_one_line_and_status_2() -> None:
    done = command("recipe", "show", "demo", "trian.steps=5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mtbi: unknown key 'trian': did you mean train?\n"


def test_an_unknown_command_is_status_2() -> None:
    done = command("trian")
    assert done.returncode == 2
    assert "invalid choice: 'trian'" in done.stderr


def test_overrides_and_prompts_may_follow_options(tmp_path: Path) -> None:
    done = command("behave", "nowhere.jsonl", "out", "--recipe", "demo", "trian.steps=5")
    assert (done.returncode, done.stderr) == (2, "mtbi: unknown key 'trian': did you mean train?\n")
    done = command("chat", str(tmp_path), "--audio", "a.wav", "what is said?")
    assert done.returncode == 2
    assert "no recipe.yaml" in done.stderr
    done = command("evaluate", str(tmp_path), "--taks")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "mtbi: error: unrecognized arguments: --taks")


def test_a_closed_pipe_is_quiet() -> None:
    shell = f"{sys.executable} -m mtbi.cli recipe fields | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {shell}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "# Fields of a recipe\n"
    assert done.stderr == ""


def test_recipe_show_prints_what_load_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "demo", "train.steps=7"]) == 0
    path = tmp_path / "shown.yaml"
    shown = capsys.readouterr().out
    path.write_text(shown, encoding="utf-8")
    assert recipe.load(path) == recipe.load("demo", ["train.steps=7"])
    origins = dict(re.findall(r"^ *(\w+): .*?  # (.*)$", shown, re.MULTILINE))
    assert origins["steps"] == "argument train.steps=7"
    assert origins["warmup_steps"] == "demo.yaml"
    assert origins["hang_seconds"] == "default"


def test_the_reference_in_docs_is_the_printed_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe", "fields"])
    assert (REPOSITORY / "docs" / "recipe.md").read_text(encoding="utf-8") == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "import", "fsd", "nowhere", "out"], "corpus kind 'fsd' is unknown"),
        (["data", "import", "folder", "nowhere", "out"], "nowhere: no such file or folder"),
        (["data", "check", "nowhere.jsonl"], "nowhere.jsonl"),
        (["data", "align", "nowhere.jsonl", "out.jsonl", "--model", "no/such/model"], "no/such/model"),
        (["data", "stats", "nowhere"], "nowhere"),
        (["behave", "nowhere.jsonl", "out"], "nowhere.jsonl"),
        (["plan", "whisper-large-v3_qwen3-8b"], "data.shards is empty"),
        (["evaluate", "nowhere"], "nowhere: no recipe.yaml"),
        (["chat", "nowhere", "hello"], "nowhere: no recipe.yaml"),
        (["recipe", "show", "demmo"], "did you mean demo?"),
        (["tasks", "list", "digitz"], "digitz"),
        (["demo", "--speech", "nowhere"], "nowhere: no such folder"),
        (["reproduce", "out", "--grid", "digitz"], "digitz: neither a file nor a shipped grid (digits)"),
        (["reproduce", "out", "--arms", "mtbee"], "--arms: choose of mtbi, multi_task"),
        (["data", "encode", "nowhere", "out"], "nowhere"),
    ],
)
def test_user_mistakes(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 2
    assert message in one_message(capsys.readouterr())


def test_import_and_check_keep_the_good_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tone = 0.1 * np.sin(np.arange(16000) * 0.1).astype(np.float32)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("good", "silent", "empty"):
        soundfile.write(source / f"{name}.wav", tone * (name != "silent"), 16000)
        (source / f"{name}.txt").write_text("" if name == "empty" else "hello there\n")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "import", "folder", "source", "out", "--text-style", "sentence"]) == 0
    assert "kept 1 utterances" in capsys.readouterr().out
    manifest = tmp_path / "out" / "manifest.jsonl"
    assert json.loads(manifest.read_text())["text"] == "Hello there."
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 2

    assert main(["data", "check", str(manifest)]) == 0
    assert main(["data", "stats", str(manifest)]) == 0
    assert "utterances  1, 0 of them aligned" in capsys.readouterr().out

    (source / "good.wav").write_bytes(b"")
    assert main(["data", "check", str(manifest)]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("good: ")
    assert "1 records cannot be used" in one_message(captured)


def test_an_llm_without_chat_template_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mtbi.demo.text_llm import make_tokenizer, read_wordings

    tokenizer = make_tokenizer(read_wordings())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "llm")
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "audio": "a.wav", "text": "one two"}\n')
    arguments = ["behave", str(tmp_path / "manifest.jsonl"), str(tmp_path / "out"), f"model.llm={tmp_path / 'llm'}"]
    assert main(arguments) == 2
    message = one_message(capsys.readouterr())
    assert "chat template" in message
    assert str(tmp_path / "llm") in message


def test_from_recordings_to_shards_and_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    for number, text in enumerate(["three five seven", "nine one"]):
        noise = 0.1 * np.random.default_rng(number).standard_normal(16000)
        soundfile.write(tmp_path / "source" / f"{number}.wav", noise.astype(np.float32), 16000)
        (tmp_path / "source" / f"{number}.txt").write_text(text)
    assert main(["data", "import", "folder", "source", "corpus"]) == 0
    assert main(["behave", "corpus/manifest.jsonl", "answers", "behaviour.tasks=[repeat,count]"]) == 0
    assert main(["data", "shard", "corpus/manifest.jsonl", "answers", "shards"]) == 0
    capsys.readouterr()
    assert main(["data", "stats", "shards"]) == 0
    assert (
        "dialogues   4, 11 answer tokens" in capsys.readouterr().out
    )  # 3 + 1, 1 + 1, 2 + 1 and 1 + 1 tokens with the end token
    assert main(["plan", "demo", "data.shards=[shards]"]) == 0
    planned = capsys.readouterr().out
    assert "steps an epoch  1\n" in planned
    assert "utterances      2 of 2\n" in planned
    assert main(["data", "shard", "corpus/manifest.jsonl", "answers", "opus", "--audio", "opus"]) == 0
    assert b"OggS" in Path("opus/shard.00000.mds").read_bytes()
    assert b"fLaC" in Path("shards/shard.00000.mds").read_bytes()
    assert main(["data", "shard", "corpus/manifest.jsonl", "answers", "shards"]) == 2
    assert "not empty" in one_message(capsys.readouterr())
    assert main(["behave", "corpus/manifest.jsonl", "answers", "behaviour.system_prompt=be brief"]) == 2
    assert "answers" in one_message(capsys.readouterr())


def test_doctor_and_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert re.search(r"^ok +torch +2\.", capsys.readouterr().out, re.MULTILINE)
    assert main(["tasks", "list", "digits", "--wordings"]) == 0
    assert "  * turn the order around" in capsys.readouterr().out
