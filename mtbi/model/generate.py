"""Answers of the speech LLM to prompts of text and audio: greedy or sampled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtbi.answers.teacher import all_end_ids
from mtbi.errors import UserError
from mtbi.llm.decode import Prompts, decode
from mtbi.llm.last_layer import decoder_of
from mtbi.llm.load import is_partitioned
from mtbi.model.speech_llm import SpeechLLMModule

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

Piece = Tensor | np.ndarray  #: token ids (tokens,) int64, or a waveform (samples,) float32 at 16 kHz


class ContextError(UserError):
    """A prompt is longer than the LLM's context."""


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer are chosen, and what ends it besides the end token and the longest length."""

    temperature: float = 0.0  #: 0 = greedy: the top-1 token
    top_p: float = 1.0  #: sample from the most probable tokens with this total probability (arXiv 1904.09751)
    seed: int = 0  #: of the samples; torch's own random state does not change
    stop: Callable[[], bool] | None = None  #: called after each token; True ends the answer

    def settings(self) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        chosen: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            chosen |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        if (stop := self.stop) is not None:
            chosen["stopping_criteria"] = [lambda ids, _scores, **_: ids.new_full((len(ids),), stop(), dtype=torch.bool)]
        return chosen

    def randomness(self, device: torch.device) -> AbstractContextManager[None]:
        """A context in which torch is seeded, if tokens are sampled."""
        return _seeded(self.seed, device) if self.temperature > 0 else nullcontext()


GREEDY = Decoding()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def context_length(llm: Any) -> int | None:
    """The LLM's context in positions, prompt and answer together; None if its configuration has no such number."""
    return getattr(llm.config.get_text_config(), "max_position_embeddings", None)


def room_for_answer(llm: Any, positions: int, wanted: int) -> int:
    """Up to `wanted` new tokens, as many as the context has room for after `positions`. Raises ContextError if it has none."""
    longest = context_length(llm)
    if longest is None:
        return wanted
    if positions >= longest:
        raise ContextError(
            f"the LLM's context is {longest} positions long, and the prompt takes {positions}: shorten it, or the recordings"
        )
    return min(wanted, longest - positions)


@torch.no_grad()
def generate(
    model: SpeechLLMModule,
    prompts: Sequence[Sequence[Piece]],
    max_new_tokens: int | Sequence[int],
    end_id: int,
    streamer: BaseStreamer | None = None,
    decoding: Decoding = GREEDY,
) -> list[list[int]]:
    """Token ids of each answer, without the end token: `end_id`, or another one of the LLM's.

    `max_new_tokens` is the longest answer, for all prompts or for each. An answer without an end token before it is so long.
    A streamer (one prompt only) gets each token as it is made. An answer ends at the latest where the context does. Under
    ZeRO-3 every rank must call this equally often; the number and length of its prompts may differ. Raises ContextError for
    prompts that are longer than the LLM's context.
    """
    training = model.training
    model.eval()
    try:
        if streamer is None and decoding == GREEDY and not is_partitioned(model.llm) and all(map(has_end, prompts)):
            return answer_in_changing_batch(model, prompts, each(max_new_tokens, prompts), end_id)
        embeddings, mask = embed_prompts(model, prompts)
        return complete(model, embeddings, mask, max_new_tokens, end_id, streamer, decoding)
    finally:
        model.train(training)


def each(limit: int | Sequence[int], prompts: Sized) -> list[int]:
    """The longest answer to each prompt."""
    return [limit] * len(prompts) if isinstance(limit, int) else list(limit)


def has_end(prompt: Sequence[Piece]) -> bool:
    """Whether a prompt ends with token ids, and holds more than one of them or something before it."""
    return isinstance(prompt[-1], Tensor) and len(prompt[-1]) > (len(prompt) == 1)


@torch.no_grad()
def answer_in_changing_batch(
    model: SpeechLLMModule, prompts: Sequence[Sequence[Piece]], limits: Sequence[int], end_id: int
) -> list[list[int]]:
    """Greedy answers by `mtbi.llm.decode`: what stands before the last piece is read once for all prompts that share it."""
    groups: dict[tuple[Hashable, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(tuple(map(identity_of, prompt[:-1])), []).append(number)
    starts = unpadded_starts(model, [prompts[numbers[0]][:-1] for numbers in groups.values()])
    ends = [piece.tolist() for piece in (prompt[-1] for prompt in prompts)]
    asked = [
        Prompts(
            start,
            [ends[number] for number in numbers],
            [room_for_answer(model.llm, len(start) + len(ends[number]), limits[number]) for number in numbers],
        )
        for start, numbers in zip(starts, groups.values(), strict=True)
    ]
    end_ids = all_end_ids(model.llm.generation_config, end_id)
    order = list(groups.values())
    answers: list[list[int]] = [[] for _ in prompts]
    for answer in decode(model.llm, asked, end_ids, rows=len(prompts)):
        group, end = answer.prompt
        answers[order[group][end]] = list(takewhile(lambda token: token not in end_ids, answer.ids))
    return answers


def identity_of(piece: Piece) -> Hashable:
    """Equal for token ids that are the same and for one and the same recording."""
    return tuple(piece.tolist()) if isinstance(piece, Tensor) else id(piece)


def unpadded_starts(model: SpeechLLMModule, starts: Sequence[Sequence[Piece]]) -> list[Tensor]:
    """The embeddings (tokens, hidden) of each start, which may have no piece."""
    embeddings, mask = embed_prompts(model, [start or [torch.zeros(0, dtype=torch.long)] for start in starts])
    return [row[mask_row > 0] for row, mask_row in zip(embeddings, mask, strict=True)]


@torch.no_grad()
def complete(
    model: SpeechLLMModule,
    embeddings: Tensor,
    mask: Tensor,
    max_new_tokens: int | Sequence[int],
    end_id: int,
    streamer: BaseStreamer | None = None,
    decoding: Decoding = GREEDY,
) -> list[list[int]]:
    """`generate` for embedded prompts: `embeddings` (prompts, tokens, hidden), their `mask` (prompts, tokens)."""
    limits = each(max_new_tokens, mask)
    longest = room_for_answer(model.llm, embeddings.shape[1], max(limits))
    ends = all_end_ids(model.llm.generation_config, end_id)
    accept_embeddings(model.llm)
    with decoding.randomness(embeddings.device):
        answers = model.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            max_new_tokens=longest,
            eos_token_id=ends,
            pad_token_id=end_id,
            streamer=streamer,
            # Every rank computes until the last one has its answer, since ZeRO-3 gathers each layer from all ranks.
            synced_gpus=is_partitioned(model.llm) and torch.distributed.get_world_size() > 1,
            **decoding.settings(),
        ).tolist()
    return [
        list(takewhile(lambda token: token not in ends, answer[:limit])) for answer, limit in zip(answers, limits, strict=True)
    ]


def accept_embeddings(llm: Any) -> None:
    """Let an LLM's `generate` begin with embeddings, in place.

    transformers asks the signature of a method whether a model can do that. Gemma 3 with vision can, and its signature in
    transformers 5 does not say so.
    """
    prepare = llm.prepare_inputs_for_generation
    if "inputs_embeds" in inspect.signature(prepare).parameters:
        return

    def prepare_with_embeddings(*args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        return prepare(*args, inputs_embeds=inputs_embeds, **kwargs)

    llm.prepare_inputs_for_generation = prepare_with_embeddings


@torch.no_grad()
def answer_logits(model: SpeechLLMModule, prompts: Sequence[Sequence[Piece]], answers: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each prompt the float32 logits (answer tokens, vocabulary) that predict the given answer."""
    embeddings, mask = embed_prompts(model, [[*p, torch.tensor(a)] for p, a in zip(prompts, answers, strict=True)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = decoder_of(model.llm)(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return [model.head.logits(row[-len(ids) - 1 : -1]) for row, ids in zip(hidden, answers, strict=True)]


def embed_prompts(model: SpeechLLMModule, prompts: Sequence[Sequence[Piece]]) -> tuple[Tensor, Tensor]:
    """Left-padded embeddings (prompts, tokens, hidden) and their mask (prompts, tokens)."""
    device = next(model.adapter.parameters()).device
    sounds = {id(piece): piece for prompt in prompts for piece in prompt if isinstance(piece, np.ndarray)}  # each only once
    waves = [torch.from_numpy(piece).float() for piece in sounds.values()]
    lengths = torch.tensor([len(wave) for wave in waves or [torch.zeros(1)]])
    # The encoder and the adapter run even if there is only text: ZeRO-3 needs the same calls on every rank.
    frames, counts = model.encode_speech(pad_sequence(waves or [torch.zeros(1)], True).to(device), lengths.to(device))
    clips = {key: model.heard(clip[:count]) for key, clip, count in zip(sounds, frames, counts.tolist(), strict=False)}
    ids = [piece.long() for prompt in prompts for piece in prompt if not isinstance(piece, np.ndarray)]
    embedded = model.embed(torch.cat(ids or [torch.zeros(1, dtype=torch.long)]).to(device))
    texts = iter(embedded.split([len(piece) for piece in ids]) if ids else [])
    rows = [
        torch.cat([clips[id(piece)].to(embedded.dtype) if isinstance(piece, np.ndarray) else next(texts) for piece in prompt])
        for prompt in prompts
    ]
    width = max(len(row) for row in rows)
    embeddings = embedded.new_zeros(len(rows), width, embedded.shape[-1])
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    for number, row in enumerate(rows):
        embeddings[number, width - len(row) :] = row
        mask[number, width - len(row) :] = 1
    return embeddings, mask
