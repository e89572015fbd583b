from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mtbi.llm import attention
from mtbi.model.generate import generate

END = 2


def slow_greedy(model, prompt, count: int) -> list[int]:
    """One prompt, no cache, no padding, plain attention."""
    parts = []
    for piece in prompt:
        if isinstance(piece, np.ndarray):
            frames, _ = model.encode_speech(torch.from_numpy(piece)[None], torch.tensor([len(piece)]))
            parts.append(frames[0])
        else:
            parts.append(model.embed(piece))
    answer: list[int] = []
    while len(answer) < count:
        embeddings = torch.cat([*parts, model.embed(torch.tensor(answer, dtype=torch.long))])
        token = int(model.llm(inputs_embeds=embeddings[None]).logits[0, -1].argmax())
        if token == END:
            break
        answer.append(token)
    return answer


def make_prompts() -> list[list[Tensor | np.ndarray]]:
    wave = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    return [
        [torch.tensor([5, 6]), wave[:2000], torch.tensor([7, 8, 9])],
        [torch.tensor([5, 6]), wave[:500], torch.tensor([11]), wave[700:], torch.tensor([7, 8, 9, 10, 12])],
        [torch.tensor([5, 6, 30, 31])],
    ]


@torch.no_grad()
@pytest.mark.parametrize("back_end", [attention.DENSE, attention.FLASH])
def test_batched_answers_are_those_of_each_prompt_alone(make_model, back_end):
    model, plain = make_model("llama", back_end).train(), make_model("llama", "sdpa")
    prompts = make_prompts()
    answers = generate(model, prompts, 8, END)
    assert answers == [slow_greedy(plain, prompt, 8) for prompt in prompts]
    assert len({tuple(answer) for answer in answers}) > 1
    assert model.training


@torch.no_grad()
def test_end_token_ends_and_is_left_out(make_model):
    model, prompt = make_model(), make_prompts()[0]
    whole = generate(model, [prompt], 8, END)[0]
    end = whole[3]
    assert generate(model, [prompt], 8, end)[0] == whole[: whole.index(end)]


class Listener:
    """A streamer that writes down what it gets."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def put(self, value: Tensor) -> None:
        self.heard += value.flatten().tolist()

    def end(self) -> None:
        self.heard.append(-1)


def test_streams_tokens_as_they_come(make_model):
    listener = Listener()
    [answer] = generate(make_model(), make_prompts()[:1], 5, END, streamer=listener)
    assert listener.heard == [*answer, -1]
