from __future__ import annotations

import pytest

from mtbi import recipe as recipes
from mtbi.engine.start import changed_fields, check_same_plan, open_shards
from mtbi.errors import UserError
from mtbi.tasks.chat import ChatFormat


def test_a_run_goes_on_with_the_plan_it_began_with() -> None:
    before = recipes.to_dict(recipes.load("demo", []))
    check_same_plan(recipes.load("demo", ["plan.rows_per_micro_batch=1", "train.steps=9", "data.workers=7"]), before)
    for change in ("plan.row_tokens=512", "interleave.share=0.1", "seed=5"):
        with pytest.raises(UserError, match=change.split("=")[0]):
            check_same_plan(recipes.load("demo", [change]), before)


def test_every_changed_field_is_reported_with_both_values() -> None:
    before = recipes.to_dict(recipes.load("demo", []))
    del before["train"]["beta2"]  # a field that the version of the checkpoint did not have
    del before["data"]
    now = recipes.load("demo", ["train.learning_rate=0.001", "loss.ce=0.5", "data.workers=7", "run_dir=elsewhere"])
    assert changed_fields(now, before) == ["loss.ce from 0.0 to 0.5", "train.learning_rate from 0.004 to 0.001"]


def test_shards_of_another_llm_are_refused(shard_folder: object, chat: ChatFormat) -> None:
    recipe = recipes.load("demo", [f"data.shards=[{shard_folder}]"])
    assert len(open_shards(recipe.data.shards, recipe, chat)) == 60
    with pytest.raises(UserError, match="another LLM, chat template or system prompt"):
        open_shards(recipe.data.shards, recipe, ChatFormat(chat.tokenizer, "Be brief."))
