"""Which questions are asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from digit_answers import CONFIG, make_utterances

from mtbi.answers.ask import ask_unanswered
from mtbi.answers.questions import chosen_tasks, count_lacking, draw_questions, fields_in
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import TransformersTeacher
from mtbi.cli import main
from mtbi.corpus.manifest import ManifestSlice, Utterance, write_manifest
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.recipe import BehaviourConfig

#: What was drawn about `u0` before wordings could name fields.
DRAWN = [("drop_last", 4), ("twice", 4), ("minimum", 0)]
LIBRARY = """
tasks:
  find:
    train: ['the {word} in {text}', 'in {language}: {word}', 'plain']
    heldout: ['{word} {nothing}']
    variables: {language: [French]}
  other: {train: ['say {nothing}', 'a', 'b']}
"""


def named(folder: Path, **settings: object) -> BehaviourConfig:
    """Settings that ask the tasks of `LIBRARY`."""
    (folder / "tasks.yaml").write_text(LIBRARY)
    return BehaviourConfig(library=[str(folder / "tasks.yaml")], wordings="all", wordings_per_task=9, **settings)


def utterance(name: str, **extra: object) -> Utterance:
    """An utterance with fields."""
    return Utterance(name, "x.wav", "one two", language="German", extra=extra)


def prompts(one: Utterance, config: BehaviourConfig, chat: ChatFormat, fields: frozenset[str]) -> set[str]:
    """What is asked about an utterance."""
    return {question.prompt for question in draw_questions(one, chosen_tasks(config), config, chat, 1, fields)}


def test_wordings_are_filled_from_the_utterance(tmp_path: Path, chat: ChatFormat) -> None:
    config, one = named(tmp_path), utterance("u", word="nine")
    fields = fields_in(chosen_tasks(config), config, [utterance("v"), one])
    assert fields == {"word"}  # neither the transcript, nor what is a variable of the task
    asked = {"the nine in {text}", "in French: nine", "plain", "nine {nothing}", "say {nothing}", "a", "b"}
    assert prompts(one, config, chat, fields) == asked
    [question] = [one for one in draw_questions(one, chosen_tasks(config), config, chat, 1, fields) if "French" in one.prompt]
    assert (question.lead_ids, question.prompt_ids) == chat.around_speech("in French: nine", False)


def test_an_utterance_without_the_field_is_not_asked_in_such_a_wording(tmp_path: Path, chat: ChatFormat) -> None:
    config, lacking = named(tmp_path), [utterance("u"), utterance("v", word=" ")]
    for one in lacking:
        assert prompts(one, config, chat, frozenset({"word"})) == {"plain", "say {nothing}", "a", "b"}
    heldout = dataclasses.replace(config, wordings="heldout", per_utterance=1)
    assert draw_questions(lacking[0], chosen_tasks(heldout), heldout, chat, 1, {"word"}) == []
    counts = count_lacking([*lacking, utterance("w", word="x")], chosen_tasks(config), config, {"word"})
    assert counts == {("find", "word"): 2}


def test_braces_that_no_utterance_knows_are_text(tmp_path: Path, chat: ChatFormat) -> None:
    config, one = named(tmp_path), utterance("u")
    assert fields_in(chosen_tasks(config), config, [one]) == frozenset()
    assert "the {word} in {text}" in prompts(one, config, chat, frozenset())


def test_wordings_without_fields_are_drawn_as_ever(tmp_path: Path, chat: ChatFormat) -> None:
    config = dataclasses.replace(CONFIG, library=["digits"])
    drawn = draw_questions(Utterance("u0", "x", "one two"), chosen_tasks(config), config, chat, 1)
    assert [question.key[1:] for question in drawn] == DRAWN
    config = dataclasses.replace(named(tmp_path), wordings_per_task=1)
    for one in (utterance(f"u{number}", word="six") for number in range(20)):
        with_field, without = (draw_questions(one, chosen_tasks(config), config, chat, 1, names) for names in ({"word"}, ()))
        assert [question.key for question in with_field] == [question.key for question in without]


def test_behave_counts_who_is_not_asked_in_all_parts(
    tmp_path: Path, chat: ChatFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    config = named(tmp_path)
    spoken = [utterance("u"), utterance("v"), utterance("w", word="nine")]
    write_manifest(tmp_path / "m.jsonl", [dataclasses.replace(one, answers={"find": "one"}) for one in spoken])
    settings = [f"behaviour.library={config.library}", "behaviour.answers=gold", "behaviour.wordings_per_task=9"]
    command = ["behave", str(tmp_path / "m.jsonl"), str(tmp_path / "answers"), *settings]
    assert main([*command, "--part", "1/3"]) == 0  # no utterance of this part has the field, but the manifest has it
    assert "find: 1 utterances have no word, so they are not asked in wordings with {word}" in capsys.readouterr().out
    part = tmp_path / "answers" / str(ManifestSlice(1, 3))
    assert [one.prompt for one in AnswerStore(part).get("u")] == ["plain"]


def test_tasks_without_heldout_wordings_are_not_asked_in_them(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    config = dataclasses.replace(CONFIG, library=["content"], tasks=["chat", "sentiment"], wordings="heldout")
    assert ask_unanswered(make_utterances(1), config, teacher, chat, tmp_path) == 1
    with pytest.raises(UserError, match="heldout wordings"):
        ask_unanswered(make_utterances(1), dataclasses.replace(config, tasks=["chat"]), teacher, chat, tmp_path)
