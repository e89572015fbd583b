from __future__ import annotations

from pathlib import Path

import pytest

from mtbi import recipe as recipes
from mtbi.answers import preview, task_library
from mtbi.cli import main


def test_chosen_tasks_are_asked_in_the_order_of_the_library() -> None:
    found = preview.ask("one two three", recipes.load("demo"), ["count", "reverse", "reverse/numerals"])
    assert [(one.task, one.answer) for one in found] == [
        ("count", "three"),
        ("reverse", "three two one"),
        ("reverse/numerals", "3 2 1"),
    ]
    assert not any(one.remarks or one.heldout for one in found)


def test_every_wording_is_asked_on_demand() -> None:
    found = preview.ask("one two three", recipes.load("demo"), ["reverse"], every_wording=True)
    task = task_library.load(["digits"])["reverse"]
    assert [one.prompt for one in found] == list(task.wordings)
    assert [one.heldout for one in found] == [False] * len(task.train) + [True] * len(task.heldout)


def test_what_is_wrong_with_an_answer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(
        "tasks:\n  shout: {train: [say what you heard], form: '[A-Z ]+'}\n  short: {train: [repeat it], max_new_tokens: 2}\n"
    )
    assert main(["tasks", "try", "one two three", "--recipe", "demo", f"behaviour.library=[{tmp_path}/mine.yaml]"]) == 0
    assert capsys.readouterr().out == (
        "shout: say what you heard\n    one two three\n  ! not in the form that the task asks for: [A-Z ]+\n"
        "short: repeat it\n    one two\n  ! cut off after 2 tokens (max_new_tokens)\n"
    )
