"""The folder of answers: settings, parts, locks, transcripts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from digit_answers import CONFIG, make_utterances

from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import SETTINGS_FILE, AnswerStore, locked, read_lines
from mtbi.answers.teacher import TransformersTeacher
from mtbi.corpus.manifest import ManifestSlice
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer


def test_other_settings_need_another_folder(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path)
    with pytest.raises(UserError, match="other settings"):
        ask_unanswered(make_utterances(1), dataclasses.replace(CONFIG, top_k=4), teacher, chat, tmp_path)
    larger = ChatFormat(load_llm_tokenizer("demo"))  # another size of the same family: same vocabulary and template
    larger.tokenizer.name_or_path = "/models/larger-llm"
    with pytest.raises(UserError, match="llm: "):
        ask_unanswered(make_utterances(1), CONFIG, teacher, larger, tmp_path)
    larger.tokenizer.name_or_path = f"/elsewhere/{Path(chat.tokenizer.name_or_path).name}"
    assert ask_unanswered(make_utterances(1), CONFIG, teacher, larger, tmp_path) == 0
    with pytest.raises(UserError, match="no answers there"):
        AnswerStore(tmp_path / "nowhere")


def test_a_folder_of_the_version_before_goes_on(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    parts = [tmp_path / str(part) for part in ManifestSlice(1, 2).siblings()]
    for number, part in enumerate(parts):
        ask_unanswered(make_utterances(2)[number:], CONFIG, teacher, chat, part)
    note = json.loads((parts[0] / SETTINGS_FILE).read_text())
    old = {"fingerprint": chat.first_fingerprint, **{key: note[key] for key in ("llm", "top_k")}}
    (parts[0] / SETTINGS_FILE).write_text(json.dumps(old))
    assert ask_unanswered(make_utterances(3), CONFIG, teacher, chat, parts[0]) > 0
    store = AnswerStore(tmp_path)  # one part of each version
    assert [identity.difference(one, chat) for one in store.notes] == ["", ""]
    (parts[0] / SETTINGS_FILE).write_text(json.dumps({**note, "prefix_ids": [7]}))
    with pytest.raises(UserError, match="made with other settings"):
        AnswerStore(tmp_path)
    with pytest.raises(UserError, match="other settings: another beginning or end of the dialogues"):
        ask_unanswered(make_utterances(1), CONFIG, teacher, chat, parts[0])


def test_answers_of_an_llm_of_another_size_need_another_folder(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path)
    larger = ChatFormat(load_llm_tokenizer("demo"), llm_size="hidden_size 4096")
    with pytest.raises(UserError, match="an LLM of another size"):
        ask_unanswered(make_utterances(1), CONFIG, teacher, larger, tmp_path)


def test_a_folder_made_anew_is_read_anew(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    for count in (20, 2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        ask_unanswered(make_utterances(count), CONFIG, teacher, chat, tmp_path / "out")
        store = AnswerStore(tmp_path / "out")
        for one in (found for utterance in make_utterances(count) for found in store.get(utterance.id)):
            assert chat.tokenizer.decode(one.answer_ids, skip_special_tokens=True) == one.answer


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another `mtbi behave`"):
        ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path)
    assert ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path) == 3


def test_parts_that_are_not_all_there_are_named(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    part = ManifestSlice.parse("2/3")
    ask_unanswered(part.take(make_utterances(6)), CONFIG, teacher, chat, tmp_path / str(part))
    with pytest.raises(UserError, match="part-1-of-3, part-3-of-3 are not finished"):
        AnswerStore(tmp_path)


def test_parts_of_two_divisions_are_not_mixed(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    for text in ("1/2", "2/2", "1/1"):
        part = ManifestSlice.parse(text)
        ask_unanswered(part.take(make_utterances(2)), CONFIG, teacher, chat, tmp_path / str(part))
    with pytest.raises(UserError, match=r"parts of different divisions, part-\*-of-1 and part-\*-of-2"):
        AnswerStore(tmp_path)


def test_answers_about_another_transcript_are_refused(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    before = make_utterances(3)
    ask_unanswered(before, CONFIG, teacher, chat, tmp_path)
    after = [*before[:2], dataclasses.replace(before[2], text="one")]
    with pytest.raises(UserError, match=r"answers about utterance u2 are about another transcript"):
        ask_unanswered(after, CONFIG, teacher, chat, tmp_path)
    store = AnswerStore(tmp_path)
    assert [len(store.get(one.id, one.text)) for one in before] == [3, 3, 3]
    with pytest.raises(UserError, match=r"answers about utterance u2 are about another transcript"):
        store.get("u2", "one")
    for path in tmp_path.glob("chunk-*.jsonl"):  # as versions wrote them that did not keep what an answer is about
        lines = [{key: value for key, value in line.items() if key != "about"} for line in read_lines(path)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ask_unanswered(after, CONFIG, teacher, chat, tmp_path) == 0


def test_a_part_of_the_utterances_reads_its_own_part_alone(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    utterances = make_utterances(6)
    parts = ManifestSlice(1, 3).siblings()
    for part in parts:
        ask_unanswered(part.take(utterances), CONFIG, teacher, chat, tmp_path / str(part))
    whole, own = AnswerStore(tmp_path), AnswerStore(tmp_path, parts[1].take(utterances))
    assert [len(own.get(one.id)) > 0 for one in utterances] == [False, False, True, True, False, False]
    assert own.kept.total() == whole.kept.total() / 3
    for path in (tmp_path / str(parts[0])).glob("chunk-*.jsonl"):
        path.write_text("damaged")
    assert AnswerStore(tmp_path, parts[1].take(utterances)).kept == own.kept
    with pytest.raises(UserError, match="damaged"):  # of another division, so all parts are read
        AnswerStore(tmp_path, utterances[1:3])
    (tmp_path / str(parts[1]) / "done").write_text("")  # as earlier versions wrote it
    with pytest.raises(UserError, match="damaged"):
        AnswerStore(tmp_path, parts[1].take(utterances))


def test_answers_of_another_division_are_found(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    utterances = make_utterances(6)
    for part in ManifestSlice(1, 3).siblings():
        ask_unanswered(part.take(utterances), CONFIG, teacher, chat, tmp_path / str(part))
    half = AnswerStore(tmp_path, utterances[:3])
    assert [len(half.get(one.id)) > 0 for one in utterances] == [True] * 3 + [False] * 3
