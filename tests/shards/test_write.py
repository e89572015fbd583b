from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mtbi.answers.store import AnswerStore
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards.write import write_shards


def test_a_bad_recording_is_named(
    corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(corpus[0], tmp_path / "corpus"))
    (folder / "3.flac").write_bytes((folder / "3.flac").read_bytes()[:200])
    with pytest.raises(UserError, match=r"3\.flac \(utterance u03\): truncated"):
        write_shards(corpus[1], folder, AnswerStore(answers), chat, str(tmp_path / "out"))


def test_a_folder_with_other_things_is_not_touched(
    tmp_path: Path, corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        write_shards(corpus[1], corpus[0], AnswerStore(answers), chat, str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_answers_of_another_llm_are_refused(
    corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="another LLM, chat template or system prompt"):
        write_shards(corpus[1], corpus[0], AnswerStore(answers), ChatFormat(chat.tokenizer, "Hi"), str(tmp_path / "x"))
