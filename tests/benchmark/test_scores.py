"""The arithmetic of the table on made-up dialogues, and reports of other versions."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mtbi.benchmark import scores
from mtbi.benchmark.dialogues import Dialogue
from mtbi.benchmark.intervals import MeanWithInterval
from mtbi.benchmark.run import load_cells
from mtbi.benchmark.scores import Cell, summarise
from mtbi.metrics import SPEECH, TEXT_LLM

#: A saved report with every scorer and condition. Its cells have no metric that was added later.
STORED = Path(__file__).parent / "stored_report"


def dialogue(
    task: str, gold: str | None, text_llm: str, heard: str, utterance: str = "u", wording: int = 0, heldout: bool = False,
    scorer: str = "exact", form: str = "", **answers: str,
) -> Dialogue:  # fmt: skip
    made = Dialogue("known", utterance, "s", task, wording, "?", heldout, False, "one two", gold, form, scorer)
    made.answers = {TEXT_LLM: text_llm, SPEECH: heard, **answers}
    return made


def numbers(cell: Cell, *names: str) -> tuple[float | None, ...]:
    return tuple(cell.number(name) for name in names)


def test_a_cell_counts_each_share() -> None:
    chosen = [
        dialogue("count", "two", "two", "Two.", silence="one", cascade="two"),
        dialogue("count", "two", "two", "three", silence="two", cascade="one"),
        dialogue("count", "two", "three", "three"),
        dialogue("count", "two", "two", "two"),
    ]
    cell = summarise("known", "count", "all", "after", chosen)
    assert numbers(cell, "accuracy", "text_llm", "silence", "cascade", "wer") == (0.5, 0.75, 0.5, 0.5, None)
    assert cell.number("agreement") == 0.75
    assert cell.number("kept") == pytest.approx(2 / 3)
    assert cell.number("shuffled") is None


def test_a_task_without_right_answers_has_agreement_and_similarity() -> None:
    cell = summarise("known", "summary", "all", "after", [dialogue("summary", None, "a talk", "A talk", scorer="similarity")])
    assert numbers(cell, "accuracy", "text_llm", "kept", "agreement") == (None, None, None, 1.0)
    assert (cell.number("chrf") or 0) > 0.5


def test_word_error_rate_is_against_the_transcript_where_no_gold_is_known() -> None:
    chosen = [dialogue("repeat", None, "one two", heard, scorer="wer") for heard in ("one two", "one")]
    assert summarise("known", "repeat", "all", "after", chosen).number("wer") == 0.25


def test_translations_have_bleu_and_chrf() -> None:
    text = "der schnelle braune Fuchs springt"
    cell = summarise("known", "t", "all", "after", [dialogue("t", text, text, text, scorer="bleu")])
    assert numbers(cell, "bleu", "chrf") == pytest.approx((1, 1))
    assert cell.number("accuracy") is None  # a translation that is not the gold one may be right


def test_following_an_instruction_is_not_being_right() -> None:
    chosen = [dialogue("count", "two", "two", heard, form="one|two|three") for heard in ("three", "it is two")]
    cell = summarise("known", "count", "all", "after", chosen)
    assert numbers(cell, "follows", "accuracy") == (0.5, 0.0)


def test_mean_and_worst_wording() -> None:
    chosen = [dialogue("count", "two", "two", "two", wording=0) for _ in range(30)]
    chosen += [dialogue("count", "two", "two", "two" if n < 5 else "one", wording=1) for n in range(10)]
    chosen += [dialogue("count", "two", "two", "one", wording=2) for _ in range(9)]  # too few to be the worst
    cell = summarise("known", "count", "all", "after", chosen)
    assert cell.number("mean_wording") == pytest.approx((1 + 0.5 + 0) / 3)
    assert cell.number("worst_wording") == 0.5


def test_intervals_draw_utterances_and_not_dialogues() -> None:
    alone = [dialogue("count", "two", "two", "two" if n % 2 else "one", utterance=str(n)) for n in range(100)]
    together = [dialogue("count", "two", "two", "two" if n % 2 else "one", utterance=str(n % 10)) for n in range(100)]

    def width(chosen: list[Dialogue]) -> float:
        accuracy = summarise("known", "count", "all", "after", chosen).values["accuracy"]
        assert accuracy.low < accuracy.value == 0.5 < accuracy.high
        return accuracy.high - accuracy.low

    assert width(alone) == pytest.approx(2 * 1.96 * 0.05, abs=0.03)
    assert width(together) > 2 * width(alone)


def test_parts_of_the_tasks() -> None:
    chosen = [
        dialogue("count", "two", "two", "two"),
        dialogue("repeat", "one two", "one two", "one", heldout=True),
        dialogue("repeat/french", "un deux", "un deux", "un deux"),
        dialogue("count/french", "deux", "deux", "deux"),
    ]
    made = scores.table(chosen, {"repeat"})
    assert [(c.tasks, c.wording, c.number("accuracy")) for c in made if c.wording != "train"][:6] == [
        ("trained tasks", "all", 0.0),
        ("trained tasks", "heldout", 0.0),
        ("new tasks", "all", 1.0),  # a format of a task that was never trained is new too
        ("trained tasks, other format", "all", 1.0),
        ("repeat", "all", 0.0),
        ("repeat", "heldout", 0.0),
    ]
    drawn = scores.render(made).splitlines()
    assert len({len(row) for row in drawn}) == 1
    assert [text.strip() for text in drawn[2].split("|")[1:-1]] == [
        "known", "trained tasks", "all", "after", "1", "0.0 (0.0–0.0)", "100.0", "0.0 (0.0–0.0)", "0.0 (0.0–0.0)", "0.0", "0.0",
    ]  # fmt: skip


def test_cells_are_saved_whole() -> None:
    cell = summarise("known", "count", "all", "after", [dialogue("count", "two", "two", "two")])
    again = scores.from_json(scores.to_json(cell))
    assert again == cell
    assert isinstance(again.values["accuracy"], MeanWithInterval)


def test_reports_of_other_versions_are_read() -> None:
    cell = summarise("known", "count", "all", "after", [dialogue("count", "two", "two", "two")])
    record = scores.to_json(cell)
    for name in ("cer", "wer_english", "voices", "kept"):
        del record[name]
    record |= {"of a later version": 1.0, "note": "kept by nobody", "accuracy": record["accuracy"] | {"method": "bootstrap"}}
    again = scores.from_json(record)
    assert {name: again.values.get(name) for name in ("accuracy", "agreement", "kept", "of a later version")} == {
        "accuracy": cell.values["accuracy"], "agreement": cell.values["agreement"], "kept": None, "of a later version": 1.0,
    }  # fmt: skip
    assert scores.to_json(again)["of a later version"] == 1.0
    saved = asdict(dialogue("count", "two", "two", "two"))
    del saved["recording"]
    assert Dialogue.from_record(saved | {"of a later version": 1}).answers == {TEXT_LLM: "two", SPEECH: "two"}


def test_a_stored_report_is_read_and_drawn_as_it_was() -> None:
    cells = load_cells(STORED)
    assert scores.render(cells) + "\n" == (STORED / "table.md").read_text(encoding="utf-8")
    assert scores.notes(cells) + "\n" == (STORED / "notes.md").read_text(encoding="utf-8")


def test_stored_answers_give_the_stored_numbers() -> None:
    lines = (STORED / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [Dialogue.from_record(json.loads(line)) for line in lines]
    made, stored = scores.table(asked, {"repeat", "count"}), load_cells(STORED)
    for cell, known in zip(made, stored, strict=True):
        values = {name: value for name, value in cell.values.items() if name in known.values}
        assert replace(cell, values=values) == known  # the stored report has no metric that was added later


def test_free_texts_have_a_share_of_the_text_llms_own_score() -> None:
    chosen = [
        dialogue("repeat", None, "one two", "one", scorer="wer", silence="three", cascade="one two"),
        dialogue("summary", None, "a talk", "a talk", scorer="similarity", silence="xyz", cascade="a"),
    ]
    cell = summarise("known", "all", "all", "after", chosen)
    assert numbers(cell, "share", "silence_share") == pytest.approx((0.75, 0.0))
    assert 0.5 < (cell.number("cascade_share") or 0) < 1
    header = scores.render([cell]).splitlines()[0]
    assert "silence share" in header
    assert "kept" not in header
    graded = summarise("known", "count", "all", "after", [dialogue("count", "two", "two", "two", cascade="two")])
    assert graded.number("share") == 1.0
    assert "share" not in scores.render([graded])  # `kept` says it already


def test_an_endless_answer_does_not_hide_the_others() -> None:
    chosen = [
        dialogue("repeat", None, "one two", heard, utterance=str(number), scorer="wer", cascade="one one")
        for number, heard in enumerate(["one two", "one " * 30])
    ]
    chosen[0].heard = chosen[1].heard = "one three four"
    chosen[1].cut_off = [SPEECH]
    cell = summarise("known", "repeat", "all", "after", chosen)
    assert numbers(cell, "wer", "wer_capped") == (29 / 4, 0.5)
    assert numbers(cell, "text_llm_wer", "recogniser_wer", "cascade_wer") == (0.0, 1.0, 0.5)
    assert numbers(cell, "runaway", "cut_off", "repetitive", "text_llm_runaway") == (0.5, 0.5, 0.5, 0.0)


def test_followed_instructions_are_counted_beside_the_text_llms() -> None:
    chosen = [dialogue("talk", None, "A TALK", said, scorer="similarity") for said in ("A TALK, AND SO ON", "a talk", "TALK")]
    for asked in chosen[:2]:
        asked.extra = {"instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}
    cell = summarise("items", "talk", "all", "after", chosen)
    assert numbers(cell, "instructions", "text_llm_instructions") == (0.5, 1.0)


def test_a_cell_drops_none_of_its_scorers() -> None:
    chosen = [
        dialogue("a", "one two", "one two", "one", scorer="wer"),
        dialogue("b", "it is two", "it is two", "it's 2", scorer="wer_english"),
        dialogue("c", "今天天气很好", "今天天气很好", "今天天气很坏", scorer="wer"),
        dialogue("d", "der Hund bellt laut heute", "?", "der Hund bellt laut heute", scorer="bleu"),
        dialogue("e", "今天天气很好", "?", "今天天气很坏", scorer="bleu"),
        dialogue("f", None, "a talk", "a talk", scorer="similarity"),
        dialogue("g", None, "milk, bread", "bread and eggs", scorer="list_f1"),
    ]
    cell = summarise("known", "all", "all", "after", chosen)
    assert numbers(cell, "wer", "wer_english", "cer", "bleu") == pytest.approx((1 / 2, 0, 1 / 6, 1))
    assert 0.5 < (cell.number("bleu_characters") or 0) < 1
    assert cell.number("chrf")
    assert cell.number("list_f1") == 0.5
    header = [name.strip() for name in scores.render([cell]).splitlines()[0].split("|")]
    assert {"WER", "WER (English)", "CER", "BLEU", "BLEU (characters)", "chrF", "list F1"} <= set(header)


def test_questions_about_one_recording_are_one_cluster() -> None:
    chosen = [dialogue("count", "two", "two", "two" if n % 2 else "one", utterance=str(n)) for n in range(100)]
    for index, asked in enumerate(chosen):
        asked.recording = f"{index % 10}.wav"
    cell = summarise("known", "count", "all", "after", chosen)
    assert (cell.recordings, cell.voices) == (10, 1)
    assert cell.values["accuracy"].high - cell.values["accuracy"].low > 0.4


def test_the_notes_say_whom_the_intervals_cover() -> None:
    chosen = [dialogue("count", "two", "two", "two", utterance=str(n)) for n in range(3)]
    notes = scores.notes(scores.table(chosen, {"count"}))
    assert "do not cover another training seed" in notes
    assert "known: 3 recordings of one speaker; the intervals say nothing about other speakers." in notes
