"""One dataclass tree for a whole run. Values come, in rising order, from its defaults, a YAML recipe, `key=value` arguments.

A recipe is named by a path (`my/recipe.yaml`) or by the name of a shipped one (`demo`). A recipe may start from another with
`base: NAME_OR_PATH`. `load("demo", ["train.steps=100"])` returns the tree; unknown keys and wrong types raise UserError.
"""

from mtbi.recipe.convert import build
from mtbi.recipe.layers import RUN_DIR, SHIPPED, annotated, load, load_saved, save, to_dict, to_yaml, value_of
from mtbi.recipe.renamed import with_new_names
from mtbi.recipe.schema import CHOICES, FieldNote, Recipe, reference
from mtbi.recipe.sections.data import BehaviourConfig, DataConfig, InterleaveConfig, PlanConfig
from mtbi.recipe.sections.model import AdapterConfig, EncoderConfig, LoraConfig, ModelConfig, in_use
from mtbi.recipe.sections.training import LossConfig, TrainConfig

__all__ = [
    "CHOICES",
    "RUN_DIR",
    "SHIPPED",
    "AdapterConfig",
    "BehaviourConfig",
    "DataConfig",
    "EncoderConfig",
    "FieldNote",
    "InterleaveConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "PlanConfig",
    "Recipe",
    "TrainConfig",
    "annotated",
    "build",
    "in_use",
    "load",
    "load_saved",
    "reference",
    "save",
    "to_dict",
    "to_yaml",
    "value_of",
    "with_new_names",
]
