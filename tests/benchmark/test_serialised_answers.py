from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mtbi.benchmark.dialogues import Dialogue
from mtbi.benchmark.serialised_answers import MOST_STREAMS, WantedAnswers, read_answers
from mtbi.cli import main
from mtbi.errors import UserError
from mtbi.metrics import SPEECH
from mtbi.scenes import read_segments


def write(folder: Path, *answers: tuple[str, str, str, str], source: str = SPEECH) -> Path:
    """An `answers.jsonl` with (group, utterance, task, answer)."""
    lines = []
    for wording, (group, utterance, task, answer) in enumerate(answers):
        dialogue = Dialogue(group, utterance, "s", task, wording, "?", True, False, "words", None, answers={source: answer})
        lines.append(json.dumps(asdict(dialogue)) + "\n")
    (folder / "answers.jsonl").write_text("".join(lines))
    return folder / "answers.jsonl"


def labels(path: Path, **wanted: object) -> list[tuple[str, str, str | None]]:
    """Session, speaker and words of the segments."""
    found = read_answers(path, WantedAnswers("all", **wanted))  # type: ignore[arg-type]
    return [(one.session_id, one.speaker, one.words) for one in found.segments]


def test_each_part_of_an_answer_is_a_segment(tmp_path: Path) -> None:
    path = write(tmp_path, ("g", "a", "all", "x y <sc> z"), ("g", "a", "other", "no"), ("g", "b", "all", " <sc> "))
    assert labels(path) == [("a", "talker-1", "x y"), ("a", "talker-2", "z"), ("b", "talker-1", "")]
    assert labels(path, one_stream=True)[1] == ("a", "talker-1", "z")
    assert labels(path, separator="y")[:2] == [("a", "talker-1", "x"), ("a", "talker-2", "<sc> z")]
    assert read_answers(path, WantedAnswers("all")).empty == 1


def test_an_answer_without_end_has_no_more_streams_than_can_be_scored(tmp_path: Path) -> None:
    found = labels(write(tmp_path, ("g", "a", "all", "<sc> x " * 50)))
    assert len(found) == 50
    assert {speaker for _, speaker, _ in found} == {f"talker-{number}" for number in range(1, MOST_STREAMS + 1)}


def test_the_first_answer_about_an_utterance_counts(tmp_path: Path) -> None:
    path = write(tmp_path, ("g", "a", "all", "first"), ("g", "b", "all", "x"), ("g", "a", "all", "second"))
    assert labels(path) == [("a", "talker-1", "first"), ("b", "talker-1", "x")]
    assert read_answers(path, WantedAnswers("all")).further == 1


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, ("g", "a", "all", "x"), ("h", "a", "all", "y"))
    with pytest.raises(UserError, match="choose one of its groups of utterances with --group: g, h"):
        labels(path)
    assert labels(path, group="h") == [("a", "talker-1", "y")]
    with pytest.raises(UserError, match="no answers of 'cascade' to all; there are those of speech LLM"):
        labels(path, group="h", source="cascade")
    with pytest.raises(UserError, match="no answers to a task 'al'; it has answers to all"):
        read_answers(path, WantedAnswers("al"))
    for wrong in ("[1]", '{"group": "g"}', "{"):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"answers\.jsonl:1: not a line of an evaluation's answers"):
            labels(path)


def test_the_command_writes_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path, ("g", "a", "all", "x | y"), ("g", "b", "all", "")), tmp_path / "hyp.json"
    command = ["data", "convert", str(path), str(out), "--separator", "|"]
    assert main([*command, "--task", "all"]) == 0
    assert capsys.readouterr().out == f"{out}: 3 segments of 2 answers, 1 of them empty\n"
    assert [(one.session_id, one.words) for one in read_segments(out).segments] == [("a", "x"), ("a", "y"), ("b", "")]
    assert main([*command, "--task", "all", "--session", "a"]) == 0
    assert len(read_segments(out).segments) == 2
    capsys.readouterr()
    for options, message in ((["--task", "all", "--session", "c"], "has no such session; there are a, b"), ([], "with --task")):
        assert main([*command, *options]) != 0
        assert message in capsys.readouterr().err
