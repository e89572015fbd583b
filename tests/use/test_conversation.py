"""Conversations with the miniature speech LLM (its adapter untrained: what it hears is not tested here, what it reads is)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.errors import UserError
from mtbi.use.conversation import Conversation, talk
from mtbi.use.open_run import TrainedRun


@pytest.fixture(scope="module")
def run(untrained_run: TrainedRun) -> TrainedRun:
    return untrained_run


def tone(path: Path, seconds: float = 1.0) -> Path:
    soundfile.write(path, 0.1 * np.sin(np.arange(int(16000 * seconds)) * 0.1).astype(np.float32), 16000)
    return path


def test_text_alone_is_answered_by_the_frozen_llm_over_several_turns(run: TrainedRun) -> None:
    conversation = Conversation(run, 20)
    assert conversation.ask("three five seven reverse the digits") == "seven five three"
    assert conversation.ask("count the digits") == "three"
    conversation.restart()
    assert conversation.ask("nine nine count the digits") == "two"


def test_speech_and_text_mixed(run: TrainedRun, tmp_path: Path) -> None:
    first, second = tone(tmp_path / "a.wav"), tone(tmp_path / "b.flac", 0.5)
    conversation = Conversation(run, 4)
    conversation.ask(f"<{first}> three five <{second}> count the digits")
    opening, heard, read, also_heard, closing, answer = conversation.parts
    chat = run.chat
    assert opening.tolist() == chat.prefix_ids
    assert (len(heard), len(also_heard)) == (16000, 8000)
    assert read.tolist() == chat.transcript_ids("three five")
    assert closing.tolist() == chat.suffix_ids("count the digits")
    assert answer[-1] == chat.end_id

    conversation.ask("sort them")
    again = [token for part in conversation.parts[6:9] for token in part.tolist()]
    assert again == chat.turn_ids("sort them")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such recording"),
        (lambda path: path.write_bytes(b""), "a.wav"),
        (lambda path: path.write_text("this is no sound"), "a.wav"),
        (lambda path: tone(path, 6), "6.0 s of speech, and the model was trained on at most 5 s"),
    ],
)
def test_an_unusable_recording_leaves_the_conversation_as_it_was(run: TrainedRun, tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "a.wav")
    conversation = Conversation(run, 4)
    conversation.ask("one two count the digits")
    before = list(conversation.parts)
    with pytest.raises(UserError) as caught:
        conversation.ask(f"<{tmp_path / 'a.wav'}> repeat it")
    assert message in str(caught.value)
    assert conversation.parts == before


def test_lines_of_standard_input(run: TrainedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "three five seven reverse the digits\ncount the digits\n<no.wav> repeat it\n/new\neight one sort the digits\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    talk(Conversation(run, 20), [], "")
    captured = capsys.readouterr()
    assert captured.out.split("\n") == ["seven five three", "three", "one eight", ""]
    assert captured.err == "mtbi: no.wav: no such recording\n"


def test_one_prompt_about_a_recording(run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(run, 4)
    talk(conversation, [tone(tmp_path / "a.wav")], "repeat it")
    assert capsys.readouterr().out.endswith("\n")
    assert [len(part) for part in conversation.parts[1:2]] == [16000]
