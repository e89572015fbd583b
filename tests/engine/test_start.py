from __future__ import annotations

import pytest

from mtbi import recipe as recipes
from mtbi.data.interleave import Coverage
from mtbi.engine.start import check_interleaving, check_same_plan, open_shards
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


def test_a_corpus_that_cannot_be_interleaved_stops_a_run_that_interleaves() -> None:
    single, unaligned = Coverage(5, 1, 4), Coverage(5, 5, 0)
    with pytest.raises(UserError, match=r"interleave.share is 0.5, but .* can be interleaved: 4 of 5 have one word only"):
        check_interleaving(recipes.load("demo", []), single)
    with pytest.raises(UserError, match=r"no utterance of data\.shards has word times: run `mtbi data align`"):
        check_interleaving(recipes.load("demo", []), unaligned)
    check_interleaving(recipes.load("demo", ["interleave.share=0"]), single)
    check_interleaving(recipes.load("demo", []), Coverage(5, 1, 3))
