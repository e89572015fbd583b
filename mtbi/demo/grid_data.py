"""The training data of the generalisation benchmark in the miniature world: the same recordings with different answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from mtbi import recipe as recipes
from mtbi.data import features, shards
from mtbi.data.corpus import read_manifest
from mtbi.data.shards import Shards
from mtbi.demo.run import prepare, questions
from mtbi.model.encoder import build_encoder
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.tasks import behaviour
from mtbi.tasks.chat import ChatFormat, load_llm_tokenizer
from mtbi.tasks.teacher import build_teacher


def variants(config: BehaviourConfig) -> dict[str, BehaviourConfig]:
    """How each set of training data is asked for; `train` itself is made by the demo."""
    main = questions("train", config)
    one = dataclasses.replace(main, per_utterance=1, wordings_per_task=5)
    return {
        "train_repeat": dataclasses.replace(one, tasks=["repeat"]),
        "train_reverse": dataclasses.replace(one, tasks=["reverse"]),
        "train_gold": dataclasses.replace(main, answers="gold"),
        "train_free": dataclasses.replace(one, library=["content"], tasks=["chat"]),
        "train_prompt_first": dataclasses.replace(main, prompt_first=True),
    }


def prepare_grid(recipe_name: str, out: Path, speech: Path | None) -> None:
    """Everything below OUT/data; what is there is kept."""
    recipe = recipes.load(recipe_name, [f"run_dir={out}"])
    data = prepare(recipe, speech)
    encoder = build_encoder(recipe.model.encoder, torch.float32, torch.device("cpu")).eval()
    encode(data / "train", encoder, recipe)
    for name, config in variants(recipe.behaviour).items():
        make_variant(data / name, data / "train", config, recipe)
        encode(data / name, encoder, recipe)


def make_variant(folder: Path, train: Path, config: BehaviourConfig, recipe: Recipe) -> None:
    """Shards of the training recordings with other answers."""
    if (folder / "shards" / shards.INDEX_NAME).exists():
        return
    utterances = read_manifest(train / "aligned.jsonl")
    chat = ChatFormat(load_llm_tokenizer(recipe.model.llm), config.system_prompt)
    behaviour.generate(utterances, config, build_teacher(recipe.model, config), chat, folder / "behaviour", seed=recipe.seed)
    shards.write(utterances, train, behaviour.BehaviourStore(folder / "behaviour"), chat, str(folder / "shards"))


def encode(folder: Path, encoder: torch.nn.Module, recipe: Recipe) -> None:
    """The frozen encoder's output, computed once for all runs."""
    if not (folder / "features" / shards.INDEX_NAME).exists():
        features.write(Shards(str(folder / "shards")), encoder, features.encoder_name(recipe), str(folder / "features"))
