from __future__ import annotations

from pathlib import Path

import pytest

from mtbi.answers import task_library
from mtbi.corpus import rendering
from mtbi.errors import UserError

#: What the manifests of `mtbi data mix` have for the wordings of the library `talkers`.
FIELDS = {"separator", "talker_number", "keyword", "talker_gender"}


@pytest.mark.parametrize("library", sorted(path.stem for path in task_library.LIBRARY.glob("*.yaml")))
def test_shipped_libraries_are_sound(library: str) -> None:
    for task in task_library.load([library]).values():
        if task.wordings != ("",):  # instruction-free chat has no wording at all
            assert task.training_wordings >= 5, task.name
            assert len(task.choices("heldout")) >= 3, task.name
        assert len(set(task.wordings)) == len(task.wordings)
        named = set().union(*(rendering.names_in(wording) for wording in task.wordings))
        assert named <= (FIELDS if library == "talkers" else set()), task.name


def write(folder: Path, text: str) -> list[str]:
    (folder / "tasks.yaml").write_text(text)
    return [str(folder / "tasks.yaml")]


def test_variables_fill_every_wording(tmp_path: Path) -> None:
    text = "tasks: {say: {train: ['in {language}', 'plain'], heldout: ['{language}!'], variables: {language: [French, Dutch]}}}"
    task = task_library.load(write(tmp_path, text))["say"]
    assert task.wordings == ("in French", "in Dutch", "plain", "French!", "Dutch!")
    assert list(task.choices("train")) == [0, 1, 2]
    assert list(task.choices("heldout")) == [3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {a: {trian: [x]}}", "did you mean 'train'"),
        ("tasks: {a: {heldout: [x]}}", "no training wording"),
        ("tasks: {a: {train: [x], heldout: [x]}}", "twice"),
        ("tasks: {a: {train: x}}", "must be a list of texts"),
        ("tasks: {a: {train: [x], scorer: bleurt}}", "scorer 'bleurt'"),
        ("tasks: {a: {train: [x], variables: [b]}}", "variables must look like"),
        ("tasks: {a: {train: [x], variables: {b: c}}}", "variables must look like"),
        ("tasks: {a: {train: [x], max_new_tokens: many}}", "max_new_tokens must be a whole number"),
        ("tasks: [a]", "holds `tasks:`"),
        ("tasks: {a: [", "not readable as YAML"),
    ],
)
def test_wrong_libraries_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_library.load(write(tmp_path, text))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    tasks = task_library.load(["digits"])
    with pytest.raises(UserError, match="did you mean 'reverse'"):
        task_library.select(tasks, ["revers"])
    with pytest.raises(UserError, match="'digit' is unknown: did you mean 'digits'"):
        task_library.load(["digit"])
