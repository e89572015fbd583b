"""Recipes: reading, overriding, refusing."""

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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=5", "unknown key 'trian': did you mean train?"),
        ("train.stpes=5", "unknown key 'train.stpes': did you mean train.steps?"),
        ("model.encoder.pth=x", "did you mean model.encoder.path?"),
        ("train.zzzzzzzz=5", "choose one of steps, learning_rate"),
        ("train.steps", "key=value"),
        ("train.steps=many", "train.steps must be a whole number, not 'many'"),
        ("train.steps=2.5", "train.steps must be a whole number"),
        ("train.steps=true", "train.steps must be a whole number"),
        ("train.steps=0", "at least 1"),
        ("train.learning_rate=.nan", "must be a number"),
        ("train.learning_rate=-1", "must not be negative"),
        ("train=5", "train is a section with keys of its own"),
        ("interleave.share=1.5", "share between 0 and 1"),
        ("interleave.span_words_min=4", "is more than interleave.span_words_max"),
        ("interleave.text_share_min=0.95", "is more than interleave.text_share_max"),
        ("loss.kl=0", "nothing would be learnt"),
        ("model.trust_remote_code=1", "true or false"),
        ("model.llm=5", "model.llm must be text"),
        ("data.shards=folder", "data.shards must be a list"),
        ("data.shards=[1]", "data.shards[0] must be text"),
        ("loss.task_weights=[1]", "must be a mapping"),
        ("loss.task_weights.sort=x", "loss.task_weights.sort must be a number"),
        ("precision=bf61", "did you mean bf16?"),
        ("precision=on", "precision must be text"),
        ("model.activation_checkpointing=onn", "did you mean on?"),
        ("interleave.cut=[", "not readable as YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("demo", [override])
    assert message in str(caught.value)


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
