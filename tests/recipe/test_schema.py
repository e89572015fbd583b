"""The tree of settings and its reference."""

from __future__ import annotations

from mtbi import recipe
from mtbi.recipe import Recipe


def test_every_field_is_in_the_reference() -> None:
    notes = {note.path: note for note in recipe.reference()}
    assert notes["train.steps"].note == "global steps"
    assert notes["model.llm_lora.rank"].default == 0
    assert notes["behaviour.library"].kind == "list[str]"

    def leaves(values: dict, path: str = "") -> set[str]:
        return {
            leaf
            for key, value in values.items()
            for leaf in (leaves(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}"})
        }

    assert set(notes) == leaves(recipe.to_dict(Recipe()))
    assert [path for path, note in notes.items() if not note.note] == []


def test_lists_and_mappings_are_not_shared() -> None:
    Recipe().data.shards.append("a")
    assert Recipe().data.shards == []
