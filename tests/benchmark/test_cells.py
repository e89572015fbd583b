"""The arithmetic of the table on made-up dialogues."""

from __future__ import annotations

import pytest

from mtbi.benchmark import cells
from mtbi.benchmark.cells import Estimate, summarise
from mtbi.benchmark.dialogues import SPEECH, TEXT_LLM, Dialogue


def dialogue(
    task: str, gold: str | None, text_llm: str, heard: str, utterance: str = "u", wording: int = 0, heldout: bool = False,
    scorer: str = "exact", form: str = "", **answers: str,
) -> Dialogue:  # fmt: skip
    made = Dialogue("known", utterance, "s", task, wording, "?", heldout, False, "one two", gold, form, scorer)
    made.answers = {TEXT_LLM: text_llm, SPEECH: heard, **answers}
    return made


def test_a_cell_counts_each_share() -> None:
    chosen = [
        dialogue("count", "two", "two", "Two.", silence="one", cascade="two"),
        dialogue("count", "two", "two", "three", silence="two", cascade="one"),
        dialogue("count", "two", "three", "three"),
        dialogue("count", "two", "two", "two"),
    ]
    cell = summarise("known", "count", "all", "after", chosen)
    assert cell.accuracy
    assert cell.kept
    assert (cell.accuracy.value, cell.text_llm, cell.silence, cell.cascade, cell.wer) == (0.5, 0.75, 0.5, 0.5, None)
    assert cell.agreement.value == 0.75
    assert cell.kept.value == pytest.approx(2 / 3)
    assert cell.shuffled is None


def test_a_task_without_right_answers_has_agreement_and_similarity() -> None:
    cell = summarise("known", "summary", "all", "after", [dialogue("summary", None, "a talk", "A talk", scorer="similarity")])
    assert (cell.accuracy, cell.text_llm, cell.kept, cell.agreement.value) == (None, None, None, 1.0)
    assert cell.chrf is not None
    assert cell.chrf > 0.5


def test_word_error_rate_is_against_the_transcript_where_no_gold_is_known() -> None:
    chosen = [dialogue("repeat", None, "one two", heard, scorer="wer") for heard in ("one two", "one")]
    assert summarise("known", "repeat", "all", "after", chosen).wer == 0.25


def test_translations_have_bleu_and_chrf() -> None:
    text = "der schnelle braune Fuchs springt"
    cell = summarise("known", "t", "all", "after", [dialogue("t", text, text, text, scorer="bleu")])
    assert cell.bleu == pytest.approx(1)
    assert cell.chrf == pytest.approx(1)
    assert cell.accuracy is None  # a translation that is not the gold one may be right


def test_following_an_instruction_is_not_being_right() -> None:
    chosen = [dialogue("count", "two", "two", heard, form="one|two|three") for heard in ("three", "it is two")]
    cell = summarise("known", "count", "all", "after", chosen)
    assert cell.follows
    assert cell.accuracy
    assert cell.follows.value == 0.5
    assert cell.accuracy.value == 0.0


def test_mean_and_worst_wording() -> None:
    chosen = [dialogue("count", "two", "two", "two", wording=0) for _ in range(30)]
    chosen += [dialogue("count", "two", "two", "two" if n < 5 else "one", wording=1) for n in range(10)]
    chosen += [dialogue("count", "two", "two", "one", wording=2) for _ in range(9)]  # too few to be the worst
    cell = summarise("known", "count", "all", "after", chosen)
    assert cell.mean_wording == pytest.approx((1 + 0.5 + 0) / 3)
    assert cell.worst_wording == 0.5


def test_intervals_draw_utterances_and_not_dialogues() -> None:
    alone = [dialogue("count", "two", "two", "two" if n % 2 else "one", utterance=str(n)) for n in range(100)]
    together = [dialogue("count", "two", "two", "two" if n % 2 else "one", utterance=str(n % 10)) for n in range(100)]

    def width(chosen: list[Dialogue]) -> float:
        found = summarise("known", "count", "all", "after", chosen).accuracy
        assert found
        assert found.low < found.value == 0.5 < found.high
        return found.high - found.low

    assert width(alone) == pytest.approx(2 * 1.96 * 0.05, abs=0.03)
    assert width(together) > 2 * width(alone)


def test_parts_of_the_tasks() -> None:
    chosen = [
        dialogue("count", "two", "two", "two"),
        dialogue("repeat", "one two", "one two", "one", heldout=True),
        dialogue("repeat/french", "un deux", "un deux", "un deux"),
        dialogue("count/french", "deux", "deux", "deux"),
    ]
    made = cells.table(chosen, {"repeat"})
    assert [(c.tasks, c.wording, c.accuracy and c.accuracy.value) for c in made if c.wording != "train"][:6] == [
        ("trained tasks", "all", 0.0),
        ("trained tasks", "heldout", 0.0),
        ("new tasks", "all", 1.0),  # a format of a task that was never trained is new too
        ("trained tasks, other format", "all", 1.0),
        ("repeat", "all", 0.0),
        ("repeat", "heldout", 0.0),
    ]
    drawn = cells.render(made).splitlines()
    assert len({len(row) for row in drawn}) == 1
    assert [one.strip() for one in drawn[2].split("|")[1:-1]] == [
        "known", "trained tasks", "all", "after", "1", "0.0 (0.0–0.0)", "100.0", "0.0 (0.0–0.0)", "0.0 (0.0–0.0)",
    ]  # fmt: skip


def test_cells_are_saved_whole() -> None:
    cell = summarise("known", "count", "all", "after", [dialogue("count", "two", "two", "two")])
    again = cells.from_json(cells.to_json(cell))
    assert again == cell
    assert isinstance(again.accuracy, Estimate)
