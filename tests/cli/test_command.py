"""The `mtbi` command as a user meets it: run in a process of its own where that matters."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mtbi import doctor, recipe
from mtbi.cli import build_parser, main
from mtbi.cli.arguments import parse
from mtbi.corpus.importers import IMPORTERS
from mtbi.corpus.text_style import STYLES
from mtbi.engine import checkpoint
from mtbi.engine.trained import CheckpointSize
from mtbi.model.speech_llm import build_speech_llm
from mtbi.use.layouts import LAYOUTS

REPOSITORY = Path(__file__).parents[2]


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
    heavy = "[name for name in ('torch', 'transformers', 'deepspeed', 'numpy', 'argcomplete') if name in sys.modules]"
    loaded = f"import sys, mtbi.cli; mtbi.cli.build_parser(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mistake_is_one_line_and_status_2() -> None:
    done = command("recipe", "show", "demo", "trian.steps=5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mtbi: unknown key 'trian': did you mean train?\n"


def test_overrides_and_prompts_may_follow_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["behave", "nowhere.jsonl", "out", "--recipe", "demo", "trian.steps=5"]) == 2
    assert one_message(capsys.readouterr()) == "mtbi: unknown key 'trian': did you mean train?"
    assert main(["chat", str(tmp_path), "--audio", "a.wav", "what is said?"]) == 2
    assert "no recipe.yaml" in one_message(capsys.readouterr())


def test_an_interrupt_is_status_130(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, over = tmp_path / "manifest.jsonl", threading.Event()
    os.mkfifo(pipe)

    def interrupt() -> None:
        with pipe.open("w"):  # waits for the command to open its end
            os.kill(os.getpid(), signal.SIGINT)
            over.wait(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    writer = threading.Thread(target=interrupt)
    writer.start()
    try:
        status = main(["data", "check", str(pipe)])
    finally:
        signal.signal(signal.SIGINT, before)
    over.set()
    writer.join()
    assert (status, capsys.readouterr().err) == (130, "\nmtbi: stopped\n")


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands_of(command)


def test_every_help_can_be_printed_and_its_examples_are_right() -> None:
    parser = build_parser()
    helps = [command.format_help() for command in commands_of(parser)]
    blocks = [text.partition("examples:\n")[2].partition("\n\n")[0] for text in helps]
    examples = [line.strip() for block in blocks for line in block.splitlines()]
    assert len(examples) > 20
    for example in examples:
        words = shlex.split(example)
        start = words.index("mtbi") + 1
        stop = words.index("|", start) if "|" in words[start:] else len(words)
        assert callable(parse(parser, words[start:stop]).function)
    assert "130  interrupted" in helps[0]


def test_the_help_names_what_the_tables_hold(capsys: pytest.CaptureFixture[str]) -> None:
    for words, names in ((["data", "import"], [*IMPORTERS, *STYLES]), (["export"], LAYOUTS)):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert [name for name in names if not re.search(rf"\b{name}\b", shown)] == []


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
    shown = capsys.readouterr().out
    assert "utterances  1, 0 of them aligned" in shown
    assert re.search(r"^  no transcript +1  █+$", shown, re.MULTILINE)

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
    assert "checkpoints     2.2 MB each (adapter 0.2 M; float32, with Adam's moments), up to 4 kept" in planned
    layers = ["model.llm_trainable=last 1", "train.llm_learning_rate=1e-5"]
    found = document(capsys, "plan", "demo", "data.shards=[shards]", *layers)
    assert found["trained"].keys() == {"adapter", "LLM layers"}
    assert found["checkpoint_bytes"] == 12 * sum(found["trained"].values())
    assert main(["data", "shard", "corpus/manifest.jsonl", "answers", "opus", "--audio", "opus"]) == 0
    assert b"OggS" in Path("opus/shard.00000.mds").read_bytes()
    assert b"fLaC" in Path("shards/shard.00000.mds").read_bytes()
    assert main(["data", "shard", "corpus/manifest.jsonl", "answers", "shards"]) == 2
    assert "not empty" in one_message(capsys.readouterr())
    assert main(["behave", "corpus/manifest.jsonl", "answers", "behaviour.system_prompt=be brief"]) == 2
    assert "answers" in one_message(capsys.readouterr())


def test_every_stage_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    for number, text in enumerate(["three five seven", "nine one", "two", "six eight"]):
        noise = 0.1 * np.random.default_rng(number).standard_normal(16000)
        soundfile.write(tmp_path / "source" / f"{number}.wav", noise.astype(np.float32), 16000)
        (tmp_path / "source" / f"{number}.txt").write_text(text)
    stages = [
        ["data", "import", "folder", "source", "corpus"],
        ["behave", "corpus/manifest.jsonl", "answers", "behaviour.tasks=[repeat,count]"],
        ["data", "shard", "corpus/manifest.jsonl", "answers", "shards"],
        ["data", "encode", "shards", "features"],
    ]
    for stage in stages:
        for part in ("2/2", "1/2", "2/2"):
            assert main([*stage, "--part", part]) == 0
    shown = capsys.readouterr().out
    assert "shards: 2 of 2 utterances of part-1-of-2\n" in shown
    assert shown.endswith("features: the encoder's output for 2 utterances of part-2-of-2\n")
    for folder in ("shards", "features"):
        assert document(capsys, "data", "stats", folder)["utterances"] == 4
    assert main(["plan", "demo", "data.shards=[features]"]) == 0
    assert main(["data", "shard", "corpus/manifest.jsonl", "answers", "shards", "--audio", "opus", "--part", "1/2"]) == 2
    assert "holds other shards already" in one_message(capsys.readouterr())


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The JSON document that a command prints, and nothing else."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_recipes_and_tasks_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = document(capsys, "recipe", "show", "demo", "train.steps=7")
    assert shown == recipe.to_dict(recipe.load("demo", ["train.steps=7"]))
    tasks = {task["name"]: task for task in document(capsys, "tasks", "list", "digits")}
    assert "turn the order around" in tasks["reverse"]["heldout"]


def test_a_plan_as_json(shard_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = recipe.load("demo").train.steps
    planned = document(capsys, "plan", "demo", f"data.shards=[{shard_folder}]", "plan.max_audio_seconds=2")
    assert planned["utterances_in_shards"] == 60
    assert planned["utterances"] + planned["left_out"]["too_long"] == 60
    assert planned["epochs"] == pytest.approx(steps / planned["steps_per_epoch"])
    assert planned["interleaving"]["unaligned"] == 1
    assert main(["plan", "demo", f"data.shards=[{shard_folder}]"]) == 0
    assert "of the utterances can be interleaved, 1.7% have no word times" in capsys.readouterr().out
    table = document(capsys, "plan", "demo", "--gpus", "1", "8", "--tokens-per-second", "1000")
    best = [choice for choice in table["choices"] if choice["best"]]
    assert [(choice["gpus"], choice["memory"]["name"]) for choice in best] == [(1, "ZeRO-1"), (8, "ZeRO-1")]
    assert best[0]["days"] == pytest.approx(steps * 4 * 1024 / 1000 / 86_400)


def test_an_evaluation_as_json(shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = recipe.load("demo", [f"run_dir={tmp_path}", f"data.shards=[{shard_folder}]", f"data.eval_shards=[{shard_folder}]"])
    recipe.save(chosen, tmp_path / "recipe.yaml")
    model = build_speech_llm(chosen.model, chosen.loss, torch.float32, torch.device("cpu"), tasks=1)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    checkpoint.save(tmp_path, 1, checkpoint.Snapshot(weights, {}, {"step": 1}))
    few = ["--dialogues", "5", "--no-controls", "--no-prompt-first"]
    found = document(capsys, "evaluate", str(tmp_path), *few)
    assert found["folder"] == str(tmp_path / "evaluation" / "step-00000001")
    cells = json.loads((tmp_path / "evaluation" / "step-00000001" / "report.json").read_text())["cells"]
    assert found["cells"] == [cell for cell in cells if cell["tasks"] == "trained tasks" and cell["wording"] == "all"]
    assert len(found["cells"]) == 1


def test_the_doctor_says_whether_checkpoints_fit_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding(free: float) -> doctor.Finding:
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        return doctor.checkpoints(tmp_path / "run", CheckpointSize({"LLM layers": 500_000_000}, kept=4))

    found = finding(31e9)
    assert (found.status, found.remedy) == (doctor.OK, "")
    assert found.found.startswith("6.0 GB each (LLM layers 500.0 M; ")
    assert finding(29e9).status == doctor.WARN
    assert finding(5.9e9).status == doctor.FAIL
    assert finding(5.9e9).remedy.startswith("5.9 GB are free: make room")


def test_doctor_tasks_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert re.search(r"^ok +torch +2\.", capsys.readouterr().out, re.MULTILINE)
    assert main(["tasks", "list", "digits", "--wordings"]) == 0
    assert "  * turn the order around" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert re.fullmatch(r"mtbi \d+\.\d+\.\d+\n", capsys.readouterr().out)
