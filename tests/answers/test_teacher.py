"""The text LLM that answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from digit_answers import CONFIG, make_utterances
from transformers import AutoModelForCausalLM, GenerationConfig

from mtbi.answers import teacher
from mtbi.answers.teacher import Answer, TransformersTeacher, all_end_ids, as_answer, build_teacher
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat, resolve_llm
from mtbi.llm.decode import Prompts
from mtbi.recipe import ModelConfig


def answers_of(teacher: TransformersTeacher, prompts: list[list[int]], limit: int) -> list[Answer]:
    """The answers to prompts that share nothing, in their order."""
    found = dict(teacher.answer(Prompts(torch.tensor(prompt[:-1]), [prompt[-1:]], [limit]) for prompt in prompts))
    return [found[number, 0] for number in range(len(prompts))]


def answer_of(ids: list[int], ids_of_step: list[int], shares: list[float]):  # type: ignore[no-untyped-def]
    rows = len(ids)
    topk = np.tile(np.array(ids_of_step), (rows, 1)), np.tile(np.log(shares), (rows, 1))
    return as_answer(ids, [7, 8, 9], *topk)


def test_an_answer_ends_at_any_end_token_and_with_the_templates() -> None:
    for end in (7, 8, 9):
        answer = answer_of([1, 2, end, 3], [1, 2, 3], [0.5, 0.3, 0.2])
        assert (answer.ids, answer.truncated) == ([1, 2, 7], False)
    cut = answer_of([1, 2, 3], [1, 2, 3], [0.5, 0.3, 0.2])
    assert (cut.ids, cut.truncated) == ([1, 2, 3], True)


def test_the_chance_of_an_end_is_that_of_the_templates_end_token() -> None:
    answer = answer_of([1, 8], [8, 7, 2], [0.5, 0.25, 0.125])
    assert answer.topk_ids[-1].tolist() == [7, 2, 8]
    np.testing.assert_allclose(np.exp(answer.topk_logprobs[-1].astype(float)), [0.75, 0.125, 0], atol=1e-3)
    assert answer.topk_ids[0].tolist() == [8, 7, 2]  # where the answer goes on nothing is changed
    alone = answer_of([1, 9], [9, 1, 2], [0.5, 0.25, 0.125])
    assert alone.topk_ids[-1].tolist() == [7, 1, 2]
    template = answer_of([1, 7], [8, 7, 2], [0.5, 0.25, 0.125])
    assert template.topk_ids[-1].tolist() == [8, 7, 2]


def test_end_tokens_come_with_the_llm() -> None:
    assert all_end_ids(GenerationConfig(eos_token_id=[3, 4, 5]), 4) == [4, 3, 5]
    assert all_end_ids(GenerationConfig(eos_token_id=3), 4) == [4, 3]
    assert all_end_ids(None, 4) == [4]


def test_the_teacher_stops_where_its_llm_may_stop(chat: ChatFormat) -> None:
    llm = AutoModelForCausalLM.from_pretrained(resolve_llm("demo"), dtype=torch.float32)
    [three, five] = (chat.plain_ids(word)[0] for word in ("three", "five"))
    prompt = chat.dialogue_ids("three five seven", "repeat")
    [whole] = answers_of(TransformersTeacher(llm, chat.end_id, 4), [prompt], 8)
    assert whole.ids[:2] == [three, five]
    llm.generation_config = GenerationConfig(eos_token_id=[chat.end_id, five])
    [stopped] = answers_of(TransformersTeacher(llm, chat.end_id, 4), [prompt], 8)
    assert (stopped.ids, stopped.truncated) == ([three, chat.end_id], False)


def test_answers_can_be_sampled(chat: ChatFormat, teacher: TransformersTeacher) -> None:
    prompts = [chat.dialogue_ids("one two three", "repeat")] * 4
    hot = TransformersTeacher(teacher.llm, chat.end_id, 4, temperature=50.0)
    torch.manual_seed(0)
    sampled = answers_of(hot, prompts, 6)
    assert len({tuple(one.ids) for one in sampled}) == 4
    [greedy] = answers_of(teacher, prompts[:1], 6)
    assert all(one.topk_ids[0].tolist() == greedy.topk_ids[0, :4].tolist() for one in sampled)  # those of the LLM itself


def test_an_llm_beside_a_vision_encoder_answers() -> None:
    llm = families.build(families.RIGHT["gemma3 with vision"](), "sdpa")
    [answer] = answers_of(TransformersTeacher(llm, end_id=2, top_k=100), [[5, 6, 7]], 3)
    assert answer.topk_ids.shape == (len(answer.ids), families.SIZES["vocab_size"])


def test_an_llm_that_nothing_could_be_trained_with_is_not_asked(tmp_path: Path) -> None:
    families.REFUSED["lfm2"][0]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.llm: lfm2 has layers that are no attention \(conv\)"):
        teacher.load_llm(ModelConfig(llm=str(tmp_path)), torch.float32, "cpu")


def test_answers_do_not_depend_on_the_batch(chat: ChatFormat, teacher: TransformersTeacher) -> None:
    prompts = [chat.dialogue_ids(u.text, "say every digit twice") for u in make_utterances(12)]
    together = answers_of(teacher, prompts, 24)
    alone = [answers_of(teacher, [prompt], 24)[0] for prompt in prompts]
    assert len({len(prompt) for prompt in prompts}) > 1  # some are padded
    for one, other in zip(together, alone, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(one.topk_logprobs, other.topk_logprobs, rtol=2**-10, atol=1e-3)


def test_vllm_that_is_not_installed_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"mtbi\[vllm\]"):
        build_teacher(ModelConfig(), dataclasses.replace(CONFIG, backend="vllm"))
