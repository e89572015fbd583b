from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mtbi import recipe as recipes
from mtbi.data.shards import INDEX_NAME, Shards
from mtbi.engine.start import check_same_plan, open_shards
from mtbi.errors import UserError
from mtbi.tasks.chat import ChatFormat


def test_a_run_goes_on_with_the_plan_it_began_with() -> None:
    before = recipes.to_dict(recipes.load("demo", []))
    check_same_plan(recipes.load("demo", ["plan.rows_per_micro_batch=1", "train.steps=9", "data.workers=7"]), before)
    for change in ("plan.row_tokens=512", "interleave.share=0.1", "seed=5"):
        with pytest.raises(UserError, match=change.split("=")[0]):
            check_same_plan(recipes.load("demo", [change]), before)


def test_shards_of_another_llm_are_refused(shard_folder: object, chat: ChatFormat) -> None:
    recipe = recipes.load("demo", [f"data.shards=[{shard_folder}]"])
    assert len(open_shards(recipe.data.shards, recipe, chat)) == 60
    with pytest.raises(UserError, match="another LLM, chat template or system prompt"):
        open_shards(recipe.data.shards, recipe, ChatFormat(chat.tokenizer, "Be brief."))


def copy_of(shard_folder: Path, folder: Path, **facts: object) -> str:
    """The same shards, of which the index says something else; None takes a fact away."""
    shutil.copytree(shard_folder, folder)
    index = json.loads((folder / INDEX_NAME).read_text()) | facts
    (folder / INDEX_NAME).write_text(json.dumps({key: value for key, value in index.items() if value is not None}))
    return str(folder)


def test_a_larger_llm_is_a_teacher_only_where_that_is_meant(shard_folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    larger = copy_of(shard_folder, tmp_path / "larger", llm="llm-8B", llm_size="hidden_size 4096, num_hidden_layers 36")
    recipe = recipes.load("demo")
    with pytest.raises(UserError, match=r"llm-8B, an LLM of another size .*behaviour\.allow_other_teacher=true"):
        open_shards([larger], recipe, chat)
    with pytest.raises(UserError, match="LLMs of different sizes"):
        Shards([str(shard_folder), larger])
    meant = recipes.load("demo", ["behaviour.allow_other_teacher=true"])
    assert len(open_shards([str(shard_folder), larger], meant, chat)) == 120


def test_places_with_other_dialogues_do_not_join(shard_folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    for number, facts in enumerate(({"prefix_ids": [1, 2, 4]}, {"end_id": 5}, {"prompt_first": True}, {"fingerprint": "2-0"})):
        other = copy_of(shard_folder, tmp_path / str(number), **facts)
        with pytest.raises(UserError, match="made for different LLMs or settings"):
            Shards([str(shard_folder), other])
        with pytest.raises(UserError, match=r"than the recipe's|behaviour\.prompt_first=true"):
            open_shards([other], recipes.load("demo"), chat)


def test_shards_of_the_version_before_stay_usable(shard_folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    old = copy_of(shard_folder, tmp_path / "old", fingerprint=chat.first_fingerprint, llm_size=None)
    assert len(open_shards([old, str(shard_folder)], recipes.load("demo"), chat)) == 120
    dated = copy_of(shard_folder, tmp_path / "dated", fingerprint=chat.first_fingerprint, prefix_ids=[2, 9], llm_size=None)
    with pytest.raises(UserError, match="another beginning or end of the dialogues"):
        open_shards([dated], recipes.load("demo"), chat)


def test_the_recipe_says_where_the_prompts_of_its_shards_stand(shard_folder: Path, chat: ChatFormat) -> None:
    with pytest.raises(UserError, match=r"prompts stand after the speech.*set behaviour\.prompt_first=false"):
        open_shards([str(shard_folder)], recipes.load("demo", ["behaviour.prompt_first=true"]), chat)
