"""Old names of keys: accepted with one note, and no difference to a run that goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mtbi import recipe
from mtbi.engine import inputs
from mtbi.errors import UserError
from mtbi.recipe import Recipe, renamed


@pytest.fixture(autouse=True)
def forget() -> None:
    renamed.log_once.cache_clear()


def old_names(loaded: Recipe) -> dict:
    """The recipe as a version before the renaming saved it."""
    values = recipe.to_dict(loaded)
    values["plan"]["window_samples"] = values["plan"].pop("window_utterances")
    return values


def test_an_old_name_is_accepted_and_noted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: demo\nplan: {window_samples: 7, row_tokens: 99}\n")
    loaded = recipe.load(path, ["plan.window_samples=9"])
    assert (loaded.plan.window_utterances, loaded.plan.row_tokens) == (9, 99)
    assert recipe.load(path).plan.window_utterances == 7
    assert "window_utterances: 7" in recipe.annotated(path)
    notes = [record.message for record in caplog.records]
    assert notes == [
        "plan.window_samples is now called plan.window_utterances; the next version no longer accepts the old name"
    ]
    path.write_text("plan: {window_samples: 7, window_utterances: 7}\n")
    with pytest.raises(UserError, match="and both are given: remove plan"):
        recipe.load(path)


def test_a_saved_recipe_and_a_checkpoint_of_before_are_read_without_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = recipe.load("demo", ["plan.window_utterances=7"])
    recipe.save(loaded, tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("window_utterances", "window_samples"))
    assert recipe.load_saved(tmp_path / "recipe.yaml") == loaded
    before = old_names(loaded)
    assert inputs.changed_fields(loaded, before) == []
    assert inputs.other_plan(loaded, before) is None
    assert "plan.window_utterances=7" in str(inputs.other_plan(recipe.load("demo", ["plan.window_utterances=8"]), before))
    assert before == old_names(loaded)  # nothing is changed in place
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
