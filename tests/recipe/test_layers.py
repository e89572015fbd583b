"""Recipe files with their bases, and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtbi import recipe
from mtbi.errors import UserError
from mtbi.recipe import Recipe


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_recipe_loads_and_survives_saving(tmp_path: Path) -> None:
    names = [file.stem for file in recipe.SHIPPED.glob("*.yaml")]
    assert {"demo", "whisper-large-v3_llama-3.1-8b", "whisper-large-v3_qwen3-8b"} <= set(names)
    for name in names:
        loaded = recipe.load(name)
        recipe.save(loaded, tmp_path / "run" / "recipe.yaml")
        assert recipe.load(tmp_path / "run" / "recipe.yaml") == loaded


def test_base_then_file_then_overrides(tmp_path: Path) -> None:
    write(tmp_path, "base: demo\ntrain: {steps: 7, learning_rate: 1e-3}\n", "below.yaml")
    path = write(tmp_path, "base: below.yaml\ntrain: {warmup_steps: 3}\nloss: {task_weights: {repeat: 2}}\n")
    loaded = recipe.load(
        path, ["train.steps=9", "loss.task_weights.sort=0.5", "behaviour.tasks=[sort]", "run_dir=/x/y", "name="]
    )
    assert (loaded.train.steps, loaded.train.warmup_steps, loaded.train.learning_rate) == (9, 3, 1e-3)
    assert loaded.loss.task_weights == {"repeat": 2.0, "sort": 0.5}
    assert loaded.behaviour.tasks == ["sort"]
    assert loaded.name == ""
    assert loaded.model == recipe.load("demo").model
    assert loaded.data.shards == ["/x/y/data/train/shards"]


def test_on_and_off_are_words_though_yaml_reads_truth(tmp_path: Path) -> None:
    assert recipe.load("demo").model.activation_checkpointing == "auto"
    for text, word in (("on", "on"), ("off", "off"), ("true", "on"), ("False", "off"), ("'on'", "on"), ("auto", "auto")):
        path = write(tmp_path, f"model: {{activation_checkpointing: {text}}}\n")
        loaded = recipe.load(path)
        assert loaded.model.activation_checkpointing == word
        assert recipe.load("demo", [f"model.activation_checkpointing={text}"]).model.activation_checkpointing == word
        for shown in (recipe.to_yaml(loaded), recipe.annotated(path)):
            assert recipe.load(write(tmp_path, shown, "shown.yaml")) == loaded


def test_an_empty_file_and_an_empty_section_are_the_defaults(tmp_path: Path) -> None:
    assert recipe.load(write(tmp_path, "")) == Recipe()
    assert recipe.load(write(tmp_path, "train:\n  # steps: 5\n")) == Recipe()


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    def message(text: str) -> str:
        with pytest.raises(UserError) as caught:
            recipe.load(write(tmp_path, text))
        return str(caught.value)

    assert "mine.yaml: unknown key 'trian'" in message("trian: {steps: 5}\n")
    assert "line 2" in message("train: {steps: 5}\n\tx: 1\n")
    assert "a recipe is a mapping" in message("- 1\n")
    assert "circle" in message("base: mine.yaml\n")
    assert "did you mean demo?" in message("base: demmo\n")
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match=r"mine\.yaml: not readable"):
        recipe.load(tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="no such recipe file"):
        recipe.load(tmp_path / "other.yaml")


def test_every_value_has_its_origin(tmp_path: Path) -> None:
    path = write(tmp_path, "base: demo\nloss: {task_weights: {sort: 2}}\n")
    origins = {}
    for line in recipe.annotated(path, ["train.steps=9"]).splitlines():
        text, _, origin = line.partition("  # ")
        origins[text.strip()] = origin
    assert origins["steps: 9"] == "argument train.steps=9"
    assert origins["sort: 2.0"] == str(path)
    assert origins["llm: demo"] == "demo.yaml"
    assert origins["beta1: 0.9"] == "default"


def test_a_value_by_its_path(tmp_path: Path) -> None:
    loaded = recipe.load("demo", ["loss.task_weights.sort=2", "plan.window_utterances=9"])
    assert recipe.value_of(loaded, "loss.task_weights.sort") == 2
    assert recipe.value_of(loaded, "plan.window_samples") == 9
    assert recipe.value_of(loaded, "model.adapter") == recipe.to_dict(loaded)["model"]["adapter"]
    assert all(recipe.value_of(Recipe(), note.path) == note.default for note in recipe.reference())
