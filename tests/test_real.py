"""`tools/real.py`: its stages, the split by speaker, and that a second start goes on. The whole run is a slow test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import real

SMALL = [
    "train.steps=3", "train.alignment_steps=1", "train.warmup_steps=1", "train.eval_utterances=2", "train.sample_dialogues=1",
    "plan.row_tokens=256",
    "plan.rows_per_step=2", "plan.rows_per_micro_batch=1", "behaviour.tasks=[repeat,count]", "behaviour.per_utterance=2",
    "train.checkpoint_every_steps=3", "train.eval_every_steps=3", "interleave.share=0",  # noise has no word times
]  # fmt: skip


def corpus(folder: Path, speakers: str, utterances: int = 2) -> Path:
    """A corpus of noise in the layout of `mtbi data import folder`: a folder for each speaker."""
    noise = np.random.default_rng(0)
    for speaker in speakers:
        (folder / speaker).mkdir(parents=True)
        for number in range(utterances):
            soundfile.write(folder / speaker / f"{number}.wav", 0.1 * noise.standard_normal(8000), 16_000)
            (folder / speaker / f"{number}.txt").write_text("one two")
    return folder


def imported(out: Path, plan: real.Plan, speakers: dict[str, str]) -> None:
    """The manifests that the import would write."""
    for name, folder in plan.names.items():
        (out / name).mkdir(parents=True)
        records = [
            {"id": f"{folder.name}-{speaker}-{number}", "audio": f"audio/{speaker}.wav", "text": "one two", "speaker": speaker}
            for speaker in speakers[folder.name]
            for number in range(3)
        ]
        (out / name / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_stage_is_a_command_that_a_user_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech, dev = corpus(tmp_path / "speech", "ab"), corpus(tmp_path / "dev", "c")
    arguments = [str(speech), "--held-out", str(dev), "--out", str(tmp_path / "out"), "--llm", "/llm", "--list"]
    assert real.main(arguments) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in listed[:2]] == [["mtbi", "data", "import"]] * 2
    assert listed[2] == "# split by speaker"
    assert listed[3].endswith("--model openai/whisper-tiny.en")
    training = next(line for line in listed if line.startswith("deepspeed"))
    assert "--recipe whisper-tiny.en_smollm2-135m model.llm=/llm" in training
    assert [line.split()[1] for line in listed if line.startswith("mtbi")][-2:] == ["evaluate", "export"]


def test_no_speaker_of_the_evaluation_is_trained_on(tmp_path: Path) -> None:
    folders = [corpus(tmp_path / name, "x") for name in ("one", "two", "dev")]
    out = tmp_path / "out"
    plan, _ = real.parse([*map(str, folders[:2]), "--held-out", str(folders[2]), "--out", str(out)])
    imported(out, plan, {"one": "abc", "two": "cd", "dev": "de"})
    real.split(plan)
    train, test = read(out / "train" / "manifest.jsonl"), read(out / "eval" / "manifest.jsonl")
    assert {record["speaker"] for record in train} == {"a", "b", "c"}
    assert {record["id"].split("-")[0] for record in test} == {"dev"}
    assert (out / "train" / train[0]["audio"]).resolve() == out / "00-one" / "audio" / "a.wav"


def test_a_share_of_the_speakers_is_held_out_without_a_folder_for_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan, _ = real.parse([str(corpus(tmp_path / "one", "x")), "--out", str(out)])
    imported(out, plan, {"one": "abcdefghijklmnopqrst"})
    real.split(plan)
    voices = [{record["speaker"] for record in read(out / name / "manifest.jsonl")} for name in ("train", "eval")]
    assert [len(speakers) for speakers in voices] == [18, 2]
    assert not voices[0] & voices[1]


def test_a_single_speaker_is_not_enough(tmp_path: Path) -> None:
    plan, _ = real.parse([str(corpus(tmp_path / "one", "x")), "--out", str(tmp_path / "out")])
    imported(tmp_path / "out", plan, {"one": "a"})
    with pytest.raises(UserError, match="0 utterances are left for training"):
        real.split(plan)


def test_a_finished_stage_is_skipped_and_a_failed_one_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    real.run_stage(real.Stage("import", ["mtbi", "no such command"], lambda: True))
    assert capsys.readouterr().out == "# import: done already\n"
    with pytest.raises(UserError, match="import: ended with status 2"):
        real.run_stage(real.Stage("import", ["mtbi", "no such command"], lambda: False))


def test_layouts_are_recognised(tmp_path: Path) -> None:
    for name, file in (("jsonl", "manifest.jsonl"), ("kaldi", "wav.scp"), ("commonvoice", "train.tsv")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
        assert real.layout(tmp_path / name)[0] == name
    (tmp_path / "ls" / "1" / "2").mkdir(parents=True)
    assert real.layout(tmp_path / "ls")[0] == "folder"
    (tmp_path / "ls" / "1" / "2" / "1-2.trans.txt").touch()
    assert real.layout(tmp_path / "ls")[0] == "librispeech"


def test_a_folder_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert real.main(["/no/such/folder"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_folder_of_speech_to_an_exported_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [str(corpus(tmp_path / "speech", "abc", utterances=6)), "--out", str(tmp_path / "out"), "--recipe", "demo"]
    arguments += ["--aligner", "demo", "--set", *SMALL]
    assert real.main(arguments) == 0
    assert (tmp_path / "out" / "run" / "evaluation" / "step-00000003" / "table.md").is_file()
    assert (tmp_path / "out" / "exported" / "README.md").is_file()
    capfd.readouterr()
    assert real.main(arguments) == 0
    again = capfd.readouterr().out
    assert again.count("done already") == again.count("\n# ") + again.startswith("#")
