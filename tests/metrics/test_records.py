from __future__ import annotations

from pathlib import Path

import pytest

from mtbi.benchmark.dialogues import Dialogue
from mtbi.metrics import METRICS, SCORERS, SPEECH, TEXT_LLM, is_graded, records, reference, score


def dialogue(scorer: str, gold: str | None, text_llm: str, speech: str) -> Dialogue:
    made = Dialogue("known", "u", "s", "task", 0, "?", False, False, "one two", gold, scorer=scorer)
    made.answers = {TEXT_LLM: text_llm, SPEECH: speech}
    return made


def test_names_and_columns_are_unique() -> None:
    for names in ([metric.name for metric in METRICS], [metric.column for metric in METRICS if metric.column]):
        assert len(set(names)) == len(names)
    assert list(SCORERS)[:6] == ["exact", "wer", "wer_english", "cer", "bleu", "similarity"]


def test_an_answer_is_scored_by_its_tasks_scorer() -> None:
    assert SCORERS["exact"].similarity("A.", "a") == 1
    assert SCORERS["wer"].similarity("a b", "a c") == 0.5
    assert SCORERS["wer"].similarity("a b c d", "a") == 0
    assert 0.3 < SCORERS["similarity"].similarity("the cat sat", "the cats sat down") < 1


def test_every_report_grades_by_one_rule() -> None:
    chosen = [
        dialogue("cer", "two", "two", "Two."),
        dialogue("exact", None, "two", "two"),
        dialogue("exact", "", "two", "two"),
        dialogue("wer", None, "?", "one"),
        dialogue("of a later version", "two", "two", "two"),
    ]
    assert [is_graded(made) for made in chosen] == [True, False, True, False, False]
    assert [score(made, SPEECH) for made in chosen] == [1.0, 1.0, 0.0, 0.5, 1.0]
    assert [reference(made) for made in chosen] == ["two", "two", "", "one two", "two"]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_with_an_interval_is_a_ratio_of_sums(metric: records.Metric) -> None:
    assert metric.interval == "none" or metric.total is records.ratio


def test_a_metric_may_read_what_an_item_holds_beside_its_texts() -> None:
    late = records.Metric(
        "late", "", "mean error of an answer's time", lambda d: "start_seconds" in d.extra,
        lambda d: (abs(float(d.answers[SPEECH]) - d.extra["start_seconds"]), 1), records.ratio,
    )  # fmt: skip
    timed = dialogue("exact", None, "?", "2.5")
    timed.extra = {"start_seconds": 2.0}
    assert [late.needs(timed), late.needs(dialogue("exact", None, "?", "2.5"))] == [True, False]
    assert late.total([late.count(timed)]) == 0.5


def test_the_documentation_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "what-to-expect.md").read_text(encoding="utf-8")
    better = {True: "higher", False: "lower", None: "–"}
    rows = [
        f"| {metric.column or '–'} | `{metric.name}` | {metric.meaning} | {metric.unit} | {better[metric.higher_is_better]} | "
        f"{f'`{metric.scorer.name}`' if metric.scorer else '–'} |"
        for metric in METRICS
    ]
    assert [line for line in page.splitlines() if line.count(" | ") == 5][-len(rows) :] == rows
