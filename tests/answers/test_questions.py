"""Which questions are asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from digit_answers import CONFIG, make_utterances

from mtbi.answers.ask import ask_unanswered
from mtbi.answers.teacher import TransformersTeacher
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat


def test_tasks_without_heldout_wordings_are_not_asked_in_them(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    config = dataclasses.replace(CONFIG, library=["content"], tasks=["chat", "sentiment"], wordings="heldout")
    assert ask_unanswered(make_utterances(1), config, teacher, chat, tmp_path) == 1
    with pytest.raises(UserError, match="heldout wordings"):
        ask_unanswered(make_utterances(1), dataclasses.replace(config, tasks=["chat"]), teacher, chat, tmp_path)
