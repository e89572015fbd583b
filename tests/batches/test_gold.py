"""Gold answers and the text LLM's answers in one folder of answers, in one folder of shards, and in one plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.batches.batch import build
from mtbi.batches.plan import Plan
from mtbi.corpus.manifest import Utterance
from mtbi.demo import world
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards.index import INDEX_NAME
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards

IMITATED = BehaviourConfig(library=["digits"], tasks=["reverse"], top_k=4, max_new_tokens=24)
GOLD = replace(IMITATED, tasks=["count"], answers="gold", top_k=32)


def make_answers(utterances: list[Utterance], config: BehaviourConfig, chat: ChatFormat, out: Path, recipe: Recipe) -> None:
    teacher = build_teacher(recipe.model, config) if config.answers == "llm" else None
    ask_unanswered(utterances, config, teacher, chat, out)


@pytest.fixture(params=["one folder of answers", "two folders of shards"])
def mixed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    corpus: tuple[Path, list[Utterance]],
    chat: ChatFormat,
    small_recipe: Recipe,
) -> Shards:
    """12 utterances with an imitated and a gold answer each, or 12 with an imitated one and the same 12 with a gold one."""
    known = [replace(one, answers={"count": world.gold_answer("count", one.text)}) for one in corpus[1][:12]]
    together = request.param == "one folder of answers"
    folders = [tmp_path / "answers"] * 2 if together else [tmp_path / "imitated", tmp_path / "gold"]
    for folder, config in zip(folders, (IMITATED, GOLD), strict=True):
        make_answers(known, config, chat, folder, small_recipe)
    for folder in set(folders):
        write_shards(known, corpus[0], AnswerStore(folder), chat, str(folder / "shards"))
    return Shards([str(folder / "shards") for folder in dict.fromkeys(folders)])


def test_gold_and_imitated_answers_are_trained_together(mixed: Shards, small_recipe: Recipe) -> None:
    small_recipe.loss.ce = small_recipe.loss.kl = 1.0
    assert (mixed.index.top_k, mixed.index.without_teacher) == (4, True)
    plan = Plan(mixed.index, small_recipe, FrameGeometry.from_config(small_recipe.model))
    batch = build(next(plan.steps()).rows, mixed.__getitem__, plan)
    has_teacher = (batch.teacher_logprobs > -torch.inf).any(1)
    is_gold = batch.target_task == plan.index.tasks.index("count")
    assert batch.teacher_ids.shape[1] == 4
    assert is_gold.any()
    assert not is_gold.all()
    assert torch.equal(has_teacher, ~is_gold)

    torch.manual_seed(0)
    model = build_speech_llm(small_recipe.model, small_recipe.loss, torch.float32, torch.device("cpu"), tasks=2)
    both = model(batch).loss
    both.backward()
    gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    # Without a teacher at all, a gold answer is learnt in the same way: its divergence adds nothing to its cross-entropy.
    batch.target_weight[~is_gold] = 0.0
    with_columns = model(batch).loss
    small_recipe.loss.kl = 0.0
    alone = build_speech_llm(small_recipe.model, small_recipe.loss, torch.float32, torch.device("cpu"), tasks=2)
    alone.load_state_dict(model.state_dict())
    torch.testing.assert_close(with_columns, alone(batch).loss)
    assert float(both.detach()) > float(with_columns.detach()) > 0
    assert all(torch.isfinite(g).all() for g in gradient)


def test_a_loss_that_teaches_nothing_from_gold_answers_is_refused(mixed: Shards, small_recipe: Recipe) -> None:
    assert (small_recipe.loss.ce, small_recipe.loss.kl) == (0.0, 1.0)
    with pytest.raises(UserError, match="gold answers"):
        Plan(mixed.index, small_recipe, FrameGeometry.from_config(small_recipe.model))


def test_an_index_of_an_earlier_version_shows_gold_answers_by_its_top_k(mixed: Shards) -> None:
    path = mixed.folders[-1].local / INDEX_NAME
    record = json.loads(path.read_text())
    del record["without_teacher"], record["sums"]
    path.write_text(json.dumps(record))
    assert Shards(str(path.parent)).index.without_teacher == (record["top_k"] == 0)
