"""The tree of settings of a whole run, from the sections in `mtbi.recipe.sections`, and the reference of all fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, is_dataclass
from typing import Any

from mtbi.recipe.fields import fields_of, rules_of, setting, type_name
from mtbi.recipe.sections.data import BehaviourConfig, DataConfig, InterleaveConfig, PlanConfig
from mtbi.recipe.sections.model import ModelConfig
from mtbi.recipe.sections.training import LossConfig, TrainConfig


@dataclass
class Recipe:
    """A whole run."""

    name: str = setting("run", "name of the run")
    run_dir: str = setting("runs/run", "folder of checkpoints, logs and TensorBoard files")
    seed: int = setting(1, "seed of all random draws")
    precision: str = setting(
        "auto",
        "precision of weights and activations: `fp32`, `bf16` or `auto` (bf16 on a GPU, fp32 elsewhere)",
        choices=("auto", "fp32", "bf16"),
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    data: DataConfig = field(default_factory=DataConfig)
    interleave: InterleaveConfig = field(default_factory=InterleaveConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class FieldNote:
    """A field of the tree, as `mtbi recipe fields` prints it."""

    path: str
    kind: str
    default: Any
    note: str
    choices: tuple[str, ...] = ()


def reference(section: type = Recipe, path: str = "") -> Iterator[FieldNote]:
    """Every field below a section, with its type, default, meaning and choices."""
    for entry, hint in fields_of(section):
        field_path = f"{path}.{entry.name}" if path else entry.name
        if is_dataclass(hint):
            yield from reference(hint, field_path)  # type: ignore[arg-type]
        else:
            rules = rules_of(entry)
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            yield FieldNote(field_path, type_name(hint), default, rules.note, rules.choices)


#: The values that a text field may take, by its path.
CHOICES = {entry.path: entry.choices for entry in reference() if entry.choices}
