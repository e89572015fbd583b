"""The measurements of the text LLM's answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from digit_answers import make_utterances

from mtbi import recipe as recipes
from mtbi.answers import measure
from mtbi.answers.measure import SampledAnswer
from mtbi.cli import main
from mtbi.corpus.manifest import write_manifest


def sampled(utterance: str, wording: int, answer: str, *faults: str) -> SampledAnswer:
    return SampledAnswer(utterance, f"words of {utterance}", "task", wording, wording > 0, f"ask {wording}", answer, 4, faults)


def test_a_wording_that_ignores_the_transcript_is_seen() -> None:
    constant = [sampled(name, 0, "It is neutral.") for name in "abc"]
    copies = [sampled(name, 1, f"Words of {name}.") for name in "abc"]
    cut = [sampled(name, 2, f"words of {name} and", "truncated") for name in "abc"]
    first, second, third = measure.by_wording([*cut, *copies, *constant])
    assert (first.commonest, first.copies, first.heldout) == (1, 0, False)
    assert first.agreement == first.chance
    assert (second.commonest, second.copies, second.kept, second.heldout) == (pytest.approx(1 / 3), 1, 1, True)
    assert second.agreement is not None
    assert second.chance is not None
    assert second.agreement > second.chance
    assert (third.kept, third.faults["truncated"], third.faults["repetitive"]) == (0, 1, 0)


def test_the_demos_llm_does_its_tasks_in_every_wording() -> None:
    answers = measure.sample_answers(make_utterances(6), recipes.load("demo"), ["reverse"], 4)
    rows = measure.by_wording(answers)
    assert {row.answers for row in rows} == {4}
    assert all(row.agreement == 1 and row.kept == 1 and row.chance is not None and row.chance < 0.8 for row in rows)


def test_the_table_and_json_hold_every_wording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path / "manifest.jsonl", make_utterances(2))
    command = ["tasks", "measure", str(tmp_path / "manifest.jsonl"), "--task", "count", "--utterances", "1"]
    assert main(command) == 0
    table = capsys.readouterr().out.splitlines()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["wordings"]) == len(found["answers"]) == len(table) - 2
