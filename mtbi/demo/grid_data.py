"""The training data of the generalisation benchmark, in the miniature world: the same recordings with different answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from pathlib import Path

import torch

from mtbi import recipe as recipes
from mtbi.corpus.manifest import read_manifest
from mtbi.demo.run import answer, prepare, questions
from mtbi.model.encoders.build import build_encoder, encoder_facts
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards import features
from mtbi.shards.index import INDEX_NAME
from mtbi.shards.read import Shards


def variants(config: BehaviourConfig) -> dict[str, BehaviourConfig]:
    """The settings by which each set of training data is asked for. The demo itself makes the set `train`."""
    main = questions("train", config)
    one_task = dataclasses.replace(main, per_utterance=1, wordings_per_task=5)
    return {
        "train_repeat": dataclasses.replace(one_task, tasks=["repeat"]),
        "train_reverse": dataclasses.replace(one_task, tasks=["reverse"]),
        "train_gold": dataclasses.replace(main, answers="gold"),
        "train_free": dataclasses.replace(one_task, library=["content"], tasks=["chat"]),
        "train_prompt_first": dataclasses.replace(main, prompt_first=True),
    }


def prepare_grid(recipe_name: str, out: Path, speech: Path | None, wanted: Set[str]) -> None:
    """Make the data below OUT/data that the runs want: sets of training data by name. Folders that are complete are kept."""
    recipe = recipes.load(recipe_name, [f"run_dir={out}"])
    data = prepare(recipe, speech)
    encoder = build_encoder(recipe.model.encoder, torch.float32, torch.device("cpu")).eval()
    encode(data / "train", encoder, recipe)
    for name, config in variants(recipe.behaviour).items():
        if name not in wanted:
            continue
        if not (data / name / "shards" / INDEX_NAME).exists():
            answer(read_manifest(data / "train" / "aligned.jsonl"), data / "train", config, recipe, data / name)
        encode(data / name, encoder, recipe)


def encode(folder: Path, encoder: torch.nn.Module, recipe: Recipe) -> None:
    """Store the frozen encoder's output, which all runs share."""
    if not (folder / "features" / INDEX_NAME).exists():
        features.write(
            Shards(str(folder / "shards")), encoder, encoder_facts(recipe.model.encoder).output_name, str(folder / "features")
        )
