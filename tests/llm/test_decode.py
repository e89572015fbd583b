"""Decoding of many prompts in a batch that changes, against one prompt at a time without a cache."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import families
import numpy as np
import pytest
import torch

from mtbi.llm import attention
from mtbi.llm.decode import Prompts, decode

END = 2


def random_prompts(shared: bool = True) -> list[Prompts]:
    """Five groups of up to four prompts of several lengths and limits; with `shared`, all but one have a start."""
    rng = random.Random(1)
    made = []
    for number in range(5):
        start = [rng.randrange(3, 61) for _ in range(rng.randrange(2, 14) if shared and number != 3 else 0)]
        ends = [[rng.randrange(3, 61) for _ in range(rng.randrange(2, 6))] for _ in range(rng.randrange(1, 5))]
        made.append(Prompts(torch.tensor(start, dtype=torch.long), ends, [rng.randrange(1, 9) for _ in ends]))
    return made


@torch.no_grad()
def alone(llm: Any, prompt: list[int], limit: int) -> tuple[list[int], torch.Tensor]:
    """The answer of one prompt and the log-probabilities (tokens, vocabulary), read anew for each token."""
    ids, steps = list(prompt), []
    while len(steps) < limit and (not steps or ids[-1] != END):
        steps.append(llm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1))
        ids.append(int(steps[-1].argmax()))
    return ids[len(prompt) :], torch.stack(steps)


def check(llm: Any, prompts: list[Prompts], rows: int) -> None:
    found = {one.prompt: one for one in decode(llm, prompts, [END], rows=rows, top_k=5)}
    assert len(found) == sum(len(one.ends) for one in prompts)
    for (number, branch), one in found.items():
        group = prompts[number]
        ids, logprobs = alone(llm, [*group.start.tolist(), *group.ends[branch]], group.limits[branch])
        assert one.ids == ids
        exact = logprobs.gather(1, torch.from_numpy(one.topk_ids))
        np.testing.assert_allclose(one.topk_logprobs, exact, atol=1e-4)
        np.testing.assert_allclose(one.topk_logprobs, logprobs.topk(5).values, atol=1e-4)


@pytest.mark.parametrize("family", families.RIGHT)
def test_every_family_answers_as_alone(family: str) -> None:
    check(families.build(families.RIGHT[family](), attention.DENSE), random_prompts(), rows=6)


@pytest.mark.parametrize("rows", [4, 64])
def test_any_number_of_rows_and_no_shared_start(rows: int) -> None:
    llm = families.build(families.RIGHT["gemma3"](), "sdpa")
    check(llm, random_prompts(shared=False), rows)


def test_a_start_may_be_embeddings() -> None:
    llm = families.build(families.RIGHT["gemma3"](), "sdpa")
    prompts = [one for one in random_prompts() if len(one.start)]
    embedded = [Prompts(llm.get_input_embeddings()(one.start), one.ends, one.limits) for one in prompts]
    found = {one.prompt: one.ids for one in decode(llm, embedded, [END])}
    assert found == {one.prompt: one.ids for one in decode(llm, prompts, [END])}


def test_an_answer_may_be_stopped_and_prompts_are_read_late() -> None:
    llm = families.build(families.RIGHT["llama"](), "sdpa")
    read = []

    def prompts() -> Iterator[Prompts]:
        for number in range(6):
            read.append(number)
            yield Prompts(torch.tensor([5, 6]), [[7 + number, 8]], [9])

    answers = decode(llm, prompts(), [END], rows=2, stop=lambda ids: len(ids) == 2)
    first = next(answers)
    assert len(first.ids) <= 2
    assert read == [0, 1, 2]  # two rows, and the one that waits
    assert len(list(answers)) == 5
