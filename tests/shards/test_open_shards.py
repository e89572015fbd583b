"""Shards that do not fit the recipe are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from shards.copies import copy_of

from mtbi import recipe as recipes
from mtbi.engine.inputs import open_training_shards
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards.open_shards import open_shards
from mtbi.shards.read import Shards


def test_shards_of_another_llm_are_refused(shard_folder: Path, chat: ChatFormat) -> None:
    recipe = recipes.load("demo", [f"data.shards=[{shard_folder}]"])
    assert len(open_training_shards(recipe.data.shards, recipe, chat)) == 60
    with pytest.raises(UserError, match="another LLM, chat template or system prompt"):
        open_training_shards(recipe.data.shards, recipe, ChatFormat(chat.tokenizer, "Be brief."))


def test_a_larger_llm_is_a_teacher_only_where_that_is_meant(shard_folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    larger = copy_of(shard_folder, tmp_path / "larger", llm="llm-8B", llm_size="hidden_size 4096, num_hidden_layers 36")
    recipe = recipes.load("demo")
    with pytest.raises(UserError, match=r"llm-8B, an LLM of another size .*behaviour\.allow_other_teacher=true"):
        open_training_shards([larger], recipe, chat)
    with pytest.raises(UserError, match="LLMs of different sizes"):
        Shards([str(shard_folder), larger])
    meant = recipes.load("demo", ["behaviour.allow_other_teacher=true"])
    assert len(open_training_shards([str(shard_folder), larger], meant, chat)) == 120


def test_places_with_other_dialogues_do_not_join(shard_folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    for number, facts in enumerate(({"prefix_ids": [1, 2, 4]}, {"end_id": 5}, {"prompt_first": True}, {"fingerprint": "2-0"})):
        other = copy_of(shard_folder, tmp_path / str(number), **facts)
        with pytest.raises(UserError, match="made for different LLMs or settings"):
            Shards([str(shard_folder), other])
        with pytest.raises(UserError, match=r"than the recipe's|behaviour\.prompt_first=true"):
            open_training_shards([other], recipes.load("demo"), chat)


def test_shards_of_the_version_before_stay_usable(shard_folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    old = copy_of(shard_folder, tmp_path / "old", fingerprint=chat.first_fingerprint, llm_size=None)
    assert len(open_training_shards([old, str(shard_folder)], recipes.load("demo"), chat)) == 120
    dated = copy_of(shard_folder, tmp_path / "dated", fingerprint=chat.first_fingerprint, prefix_ids=[2, 9], llm_size=None)
    with pytest.raises(UserError, match="another beginning or end of the dialogues"):
        open_training_shards([dated], recipes.load("demo"), chat)


def test_the_recipe_says_where_the_prompts_of_its_shards_stand(shard_folder: Path, chat: ChatFormat) -> None:
    with pytest.raises(UserError, match=r"prompts stand after the speech.*set behaviour\.prompt_first=false"):
        open_training_shards([str(shard_folder)], recipes.load("demo", ["behaviour.prompt_first=true"]), chat)


def test_work_without_the_answers_takes_shards_of_any_llm_and_the_recipes_limits(
    shard_folder: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    other = copy_of(shard_folder, tmp_path / "other", fingerprint="2-0")
    opened = open_shards(other, recipes.load("demo", ["data.retries=3", "data.cache_limit_gb=0.5"]))
    assert [(folder.retries, folder.cache_limit_bytes) for folder in opened.folders] == [(3, 500_000_000)]
    with pytest.raises(UserError, match="than the recipe's"):
        open_shards(other, recipes.load("demo"), chat)
