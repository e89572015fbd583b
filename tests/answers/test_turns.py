"""Dialogues of several turns: from the manifest or the text LLM, through answers and shards, to the batch and its gradient."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import TransformersTeacher
from mtbi.batches.batch import build
from mtbi.batches.longest import longest_tokens
from mtbi.batches.plan import Plan, Row
from mtbi.benchmark.answers import ConditionAsker
from mtbi.benchmark.dialogues import Dialogue, from_shards
from mtbi.benchmark.scores import table
from mtbi.corpus.manifest import Utterance, parse, read_manifest, write_manifest
from mtbi.demo import world
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.metrics import SPEECH, TEXT_LLM
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards.index import BRANCH, CONVERSATION
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun

LIBRARY = """
tasks:
  talk:
    train: [reverse the digits]
    scorer: wer
    follow_ups: [[count the digits, count them], what is the last digit]
  plain: {train: [repeat it]}
  final: {train: [repeat it], answers: transcript, supervised: last, follow_ups: [sort the digits]}
"""


@pytest.fixture
def config(tmp_path: Path) -> BehaviourConfig:
    (tmp_path / "tasks.yaml").write_text(LIBRARY)
    return BehaviourConfig(library=[str(tmp_path / "tasks.yaml")], per_utterance=0, top_k=4, max_new_tokens=24, batch_size=4)


@pytest.fixture
def talks(
    tmp_path: Path,
    config: BehaviourConfig,
    corpus: tuple[Path, list[Utterance]],
    chat: ChatFormat,
    teacher: TransformersTeacher,
) -> Shards:
    """12 utterances, each with two dialogues of several turns and a plain one."""
    assert ask_unanswered(corpus[1][:12], config, teacher, chat, tmp_path / "answers") == 36
    assert ask_unanswered(corpus[1][:12], config, teacher, chat, tmp_path / "answers") == 0
    write_shards(corpus[1][:12], corpus[0], AnswerStore(tmp_path / "answers"), chat, str(tmp_path / "shards"))
    return Shards(str(tmp_path / "shards"))


def with_gold_answers(one: Utterance) -> Utterance:
    first, second = (world.gold_answer(task, one.text) for task in ("reverse", "sort"))
    return replace(one, answers={"talk": first}, follow_ups={"talk": [{"prompt": "sort them", "answer": second}]})


def test_the_llm_answers_turn_after_turn_given_its_own_answers(
    talks: Shards, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    for number in range(4):
        sample = talks[number]
        final, plain, talk = sample.behaviours
        assert [len(one.turns) for one in (final, plain, talk)] == [2, 1, 3]
        assert [turn.supervised for turn in final.turns] == [False, True]
        assert (final.answer, final.topk_logprobs.max()) == (sample.text, -np.inf)
        for one in (final, talk):
            ids = [*chat.prefix_ids, *chat.transcript_ids(sample.text)]
            for turn in one.turns:
                ids += turn.prompt_ids
                if turn.topk_logprobs.max() > -np.inf:
                    with torch.no_grad():
                        logits = teacher.llm(torch.tensor([[*ids, *turn.answer_ids]])).logits[0, len(ids) - 1 : -1]
                    expected = logits.log_softmax(-1)
                    assert expected.argmax(-1).tolist() == turn.answer_ids
                    exact = expected.gather(1, torch.from_numpy(turn.topk_ids).long())
                    torch.testing.assert_close(torch.from_numpy(turn.topk_logprobs).float(), exact, rtol=2**-11, atol=1e-3)
                assert chat.decode(turn.answer_ids) == turn.answer
                ids += turn.answer_ids


def test_the_turns_are_laid_out_as_a_conversation_feeds_them(talks: Shards, untrained_run: TrainedRun) -> None:
    sample = talks[0]
    for one in sample.behaviours:
        conversation = Conversation(untrained_run)
        conversation.recall([sample.waveform], one.prompt, one.answer)
        trained = [*one.prompt_ids, *one.answer_ids]
        for turn in one.further:
            conversation.recall([], turn.prompt, turn.answer)
            trained += [*turn.prompt_ids, *turn.answer_ids]
        fed = [int(token) for part in conversation.parts[2:] if isinstance(part, torch.Tensor) for token in part]
        assert fed == trained


def test_batches_of_dialogues_are_what_the_plan_counted(talks: Shards, small_recipe: Recipe) -> None:
    small_recipe.loss.gold_ce = 1.0
    plan = Plan(talks.index, small_recipe, FrameGeometry.from_config(small_recipe.model))
    step = next(plan.steps())
    batch = build(step.rows, talks.__getitem__, plan)
    assert int((batch.group >= 0).sum()) == step.tokens
    assert float(batch.target_weight.sum()) == pytest.approx(step.weight_total)
    assert len(batch.target_ids) == len(batch.teacher_ids) == step.target_tokens
    assert longest_tokens(plan) >= int(batch.position_ids.max()) + 1
    group = step.rows[0].groups[0]
    alone = build([Row((group,))], talks.__getitem__, plan)
    learnt = [t for number in group.branches for t in talks[group.utterance].behaviours[number].turns if t.supervised]
    assert alone.target_ids.tolist() == [token for turn in learnt for token in turn.answer_ids]
    assert alone.teacher_ids.tolist() == [row for turn in learnt for row in turn.topk_ids.tolist()]
    branch = alone.branch.flatten()
    for slot, token in zip(alone.target_slot.tolist(), alone.target_ids.tolist(), strict=True):
        if slot + 1 < len(branch) and branch[slot + 1] == branch[slot]:
            assert alone.token_ids.flatten()[slot + 1] == token


def test_packed_dialogues_have_the_gradient_of_single_ones(talks: Shards, small_recipe: Recipe) -> None:
    small_recipe.loss.gold_ce = 1.0
    small_recipe.interleave.share = 0.0
    plan = Plan(talks.index, small_recipe, FrameGeometry.from_config(small_recipe.model))
    groups = [group for row in next(plan.steps()).rows for group in row.groups][:3]
    torch.manual_seed(0)
    model = build_speech_llm(small_recipe.model, small_recipe.loss, torch.float32, torch.device("cpu"), tasks=3)

    def gradient(rows: list[Row]) -> list[torch.Tensor]:
        model.zero_grad()
        model(build(rows, talks.__getitem__, plan)).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    packed = gradient([Row(tuple(groups))])
    apart = []
    for group in groups:
        for number in group.branches:
            tokens = group.tokens - sum(
                sum(len(turn.prompt_ids) + len(turn.answer_ids) for turn in talks[group.utterance].behaviours[other].turns) - 1
                for other in group.branches
                if other != number
            )
            apart.append(gradient([Row((replace(group, branches=(number,), tokens=tokens),))]))
    for together, *single in zip(packed, *apart, strict=True):
        torch.testing.assert_close(together, torch.stack(single).sum(0), rtol=1e-3, atol=1e-5)


def test_gold_dialogues_come_from_the_manifest(
    tmp_path: Path, config: BehaviourConfig, corpus: tuple[Path, list[Utterance]], chat: ChatFormat
) -> None:
    known = [*map(with_gold_answers, corpus[1][:5]), replace(corpus[1][5], answers={"talk": "one"})]
    write_manifest(tmp_path / "manifest.jsonl", known)
    assert read_manifest(tmp_path / "manifest.jsonl") == known
    gold = replace(config, answers="gold", tasks=["talk"])
    assert ask_unanswered(known, gold, None, chat, tmp_path / "gold") == 5  # the sixth lacks answers to the task's follow-ups
    [answer] = AnswerStore(tmp_path / "gold").get(known[0].id)
    [turn] = answer.further
    assert (turn.prompt, turn.answer, turn.gold) == ("sort them", *[world.gold_answer("sort", known[0].text)] * 2)
    assert turn.prompt_ids == chat.turn_ids("sort them")
    assert turn.answer_ids == [*chat.answer_ids(turn.answer), chat.end_id]
    assert not turn.topk_ids.size


def test_an_answer_that_was_cut_off_gets_its_end_in_the_context(
    tmp_path: Path, config: BehaviourConfig, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    utterance = Utterance("u", "u.wav", "one two three four")
    short = replace(config, tasks=["talk"], max_new_tokens=2)
    ask_unanswered([utterance], short, teacher, chat, tmp_path / "kept")
    [answer] = AnswerStore(tmp_path / "kept").get("u")
    assert answer.truncated
    assert answer.further[0].prompt_ids[0] == chat.end_id
    assert chat.end_id not in answer.answer_ids
    ask_unanswered([utterance], replace(short, filter=["truncated"]), teacher, chat, tmp_path / "left_out")
    assert AnswerStore(tmp_path / "left_out").left_out == {("talk", "truncated"): 1}


def test_only_shards_with_several_turns_have_the_later_index(talks: Shards, shard_folder: Path) -> None:
    assert talks.index.branches.dtype == CONVERSATION
    assert talks.index.branches["further"].tolist() == [1, 0, 2] * 12
    assert talks.index.without_teacher is False  # the transcripts are not learnt
    assert '"version": 4' in (talks.folders[0].local / "mtbi_index.json").read_text()
    plain = Shards(str(shard_folder))
    assert plain.index.branches.dtype == BRANCH
    both = Shards([str(shard_folder), str(talks.folders[0].local)])
    assert both.index.branches["further"].sum() == 36
    assert both[len(plain)].id == talks[0].id


@pytest.mark.parametrize("turns", ["sort", [{"prompt": ""}], [{"question": "sort"}], [{"prompt": 1}]])
def test_further_turns_of_another_form_are_refused(turns: object) -> None:
    with pytest.raises(UserError, match="follow_ups must look like"):
        parse({"audio": "a.wav", "text": "one", "follow_ups": {"talk": turns}})


def test_a_further_turn_without_a_prompt_is_named(
    tmp_path: Path, config: BehaviourConfig, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    utterance = Utterance("u7", "u.wav", "one", follow_ups={"plain": [{"answer": "two"}]})
    with pytest.raises(UserError, match="utterance 'u7': a follow-up of 'plain' has no prompt"):
        ask_unanswered([utterance], config, teacher, chat, tmp_path / "out")


def test_every_turn_is_asked_with_the_stored_answers_before_it(talks: Shards, untrained_run: TrainedRun) -> None:
    asker = ConditionAsker(untrained_run, controls=["silence"])
    turns = [turn for turn in from_shards("dev", talks, {}, 0) if turn.dialogue.utterance == talks[0].id]
    assert [(turn.dialogue.task, turn.dialogue.turn) for turn in turns] == [
        ("final", 1), ("final", 2), ("plain", 1), ("talk", 1), ("talk", 2), ("talk", 3),
    ]  # fmt: skip
    stored, last = talks[0].behaviours[2], turns[-1]
    assert last.dialogue.history == [(turn.prompt, turn.answer) for turn in stored.turns[:2]]
    conversation = Conversation(untrained_run)
    for said, turn in zip(([talks[0].waveform], []), stored.turns, strict=False):
        conversation.recall(said, turn.prompt, turn.answer)
    fed = conversation.asked([], stored.further[-1].prompt)
    asked = asker.prompt(last, SPEECH, last.waveform)
    assert [token for part in asked[2:] for token in part.tolist()] == [token for part in fed[2:] for token in part.tolist()]
    untrained = [turn.dialogue.answers.pop(TEXT_LLM) for turn in turns[1:2]]  # the text LLM gives its own answer again
    asker.ask(turns)
    assert [turn.dialogue.answers[TEXT_LLM] for turn in turns[1:2]] == untrained
    assert all(SPEECH in turn.dialogue.answers and turn.dialogue.tokens for turn in turns if turn.dialogue.task == "talk")
    names = {cell.tasks for cell in table([turn.dialogue for turn in turns], {"talk"})}
    assert {"talk", "talk, turn 1", "talk, turn 3", "plain"} <= names
    assert "plain, turn 1" not in names
    assert Dialogue.from_record(json.loads(json.dumps(asdict(last.dialogue)))) == last.dialogue
