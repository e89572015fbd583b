"""Answers of a text LLM to many prompts, token by token, in one batch that changes while it runs (continuous batching).

- A row leaves the batch with its last token, and waiting prompts take the free places. Each row has its own limit.
- Prompts that begin alike share the computation of their beginning.
- The most probable tokens are taken from each step's logits, which are not stored.

The tokens of a row stand side by side in the cache, up to its last column. So attention with sliding windows or chunks, whose
masks transformers makes from columns, is computed as for a single prompt. Layers that are no attention have no such cache
(`mtbi.llm.back_end.check_config` refuses them).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicLayer

from mtbi.llm.last_layer import decoder_of

ROOM = 64  #: free columns of a new cache: it is copied once in so many steps
FREE_SHARE = 0.25  #: share of the rows that must be free before waiting prompts are read and join the batch

Choose = Callable[[Tensor], Tensor]  #: float32 logits (rows, vocabulary) to the next tokens (rows,)
Stop = Callable[[list[int]], bool]  #: whether an answer ends after these tokens


@dataclass(frozen=True)
class Prompts:
    """Prompts that begin alike. A start and an end together have at least two positions."""

    start: Tensor  #: (tokens,) int64 ids or (tokens, hidden) embeddings; may be empty
    ends: list[list[int]]  #: the token ids with which each prompt goes on, at least one id
    limits: list[int]  #: the most tokens of each answer, at least one


@dataclass(frozen=True)
class Decoded:
    """The answer to one prompt."""

    prompt: tuple[int, int]  #: number of the `Prompts`, and of the end among its ends
    ids: list[int]  #: token ids, with the end token if there is one
    topk_ids: np.ndarray  #: (tokens, k) int64, the most probable first
    topk_logprobs: np.ndarray  #: (tokens, k) float32, natural logarithm


@dataclass
class AnsweredRow:
    """A prompt that is being answered."""

    prompt: tuple[int, int]
    limit: int
    next_id: int  #: the token that the LLM reads next
    length: int  #: positions that the LLM has read
    ids: list[int] = field(default_factory=list)
    tops: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def decoded(self) -> Decoded:
        """The answer so far."""
        ids, logprobs = zip(*self.tops, strict=True)
        return Decoded(self.prompt, self.ids, np.stack(ids), np.stack(logprobs))


class RoomyLayer(DynamicLayer):
    """Keys and values `(rows, heads, columns, size)` of one layer, with free columns: most steps write one and copy none."""

    def __init__(self) -> None:
        super().__init__()
        self.roomy: list[Tensor] = []  #: keys and values with the free columns
        self.held: list[Tensor] = []  #: keys and values without them

    def hold(self, roomy: list[Tensor], columns: int) -> None:
        """Take over keys and values whose first `columns` columns are in use."""
        self.roomy, self.is_initialized = roomy, True
        self.keys, self.values = self.held = [states[:, :, :columns] for states in roomy]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns. Returns the keys and values of all columns in use."""
        used = self.get_seq_length()
        stop = used + key_states.shape[2]
        if not self.roomy:
            self.hold([key_states, value_states], stop)
            return key_states, value_states
        if stop > self.roomy[0].shape[2]:
            self.roomy = [functional.pad(states[:, :, :used], (0, 0, 0, stop - used + ROOM)) for states in self.roomy]
        for states, new in zip(self.roomy, (key_states, value_states), strict=True):
            states[:, :, used:stop] = new
        self.hold(self.roomy, stop)
        return self.held[0], self.held[1]


def layers_of(cache: Cache) -> list[RoomyLayer]:
    """The layers of a cache that `read` has filled."""
    layers: Any = cache.layers
    return layers


def read(llm: Any, cache: Cache, inputs: Tensor, held: Tensor, new: Tensor) -> None:
    """Append prompts, or parts of them, to a cache.

    `inputs` are ids (rows, tokens) or embeddings (rows, tokens, hidden), padded on the right. `held` (rows,) are the positions
    of each row in the cache, which are its last columns. `new` (rows,) are the positions of each row in `inputs`.
    """
    decoder = decoder_of(llm)
    before, count = torch.arange(cache.get_seq_length()).flip(0), torch.arange(inputs.shape[1])
    mask = torch.cat([before < held[:, None], count < new[:, None]], 1)
    positions = held[:, None] + torch.minimum(count, (new[:, None] - 1).clamp(min=0))
    decoder(
        **{"input_ids" if inputs.ndim == 2 else "inputs_embeds": inputs.to(llm.device)},
        attention_mask=mask.long().to(llm.device),
        position_ids=positions.to(llm.device),
        use_cache=True,
        **{cache_argument(decoder): cache},
    )


def cache_argument(model: Any) -> str:
    """The name of the argument that takes the cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def taken(cache: Cache, rows: Tensor, stops: Tensor, lengths: Tensor) -> Cache:
    """A new cache of the `rows` (n,) of another one, which may be named several times.

    The `lengths` (n,) columns before the columns `stops` (n,) are each new row's last columns.
    """
    width = int(lengths.max())
    # Columns that no position belongs to are masked later.
    columns = (stops[:, None] - width + torch.arange(width)).clamp(min=0)
    layers: list[Any] = []
    for old in layers_of(cache):
        at = rows[:, None].to(old.held[0].device), columns.to(old.held[0].device)
        layers.append(RoomyLayer())
        layers[-1].hold([states.transpose(1, 2)[at].transpose(1, 2) for states in old.held], width)
    return Cache(layers=layers)


def read_prompts(llm: Any, prompts: list[Prompts]) -> tuple[Cache, Tensor]:
    """Read all tokens of the prompts but the last one of each. Each start is read once.

    Returns the cache with a row for each prompt, and the positions (prompts,) that it holds of each.
    """
    cache = Cache(layer_class_to_replicate=RoomyLayer)
    starts = torch.tensor([len(group.start) for group in prompts])
    owner = torch.tensor([number for number, group in enumerate(prompts) for _ in group.ends])
    if starts.max() > 0:
        read(llm, cache, pad_sequence([group.start for group in prompts], True), torch.zeros_like(starts), starts)
        cache = taken(cache, owner, starts[owner], starts[owner])
    ends = [torch.tensor(end[:-1], dtype=torch.long) for group in prompts for end in group.ends]
    new = torch.tensor([len(end) for end in ends])
    columns = cache.get_seq_length()
    if new.max() > 0:
        read(llm, cache, pad_sequence(ends, True), starts[owner], new)
    lengths = starts[owner] + new
    return taken(cache, torch.arange(len(ends)), columns + new, lengths), lengths


class RunningRows:
    """The rows that are being answered, with their cache."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.rows: list[AnsweredRow] = []
        self.cache = Cache(layers=[])

    def join(self, numbered: list[tuple[tuple[int, int], Prompts]]) -> None:
        """Read further prompts and make rows of them. The key of a `Prompts` is its number and the number of its first end."""
        new, lengths = read_prompts(self.llm, [prompts for _, prompts in numbered])
        counts = iter(lengths.tolist())
        held = self.rows
        self.rows = held + [
            AnsweredRow((number, first + index), limit, end[-1], next(counts))
            for (number, first), prompts in numbered
            for index, (end, limit) in enumerate(zip(prompts.ends, prompts.limits, strict=True))
        ]
        if not held:
            self.cache = new
            return
        old_width, new_width = max(row.length for row in held), new.get_seq_length()
        width = max(old_width, new_width)
        for old, added in zip(layers_of(self.cache), layers_of(new), strict=True):
            both = []
            for before, after in zip(old.held, added.held, strict=True):
                states = before.new_zeros(len(self.rows), before.shape[1], width + ROOM, before.shape[3])
                states[: len(held), :, width - old_width : width] = before[:, :, before.shape[2] - old_width :]
                states[len(held) :, :, width - new_width : width] = after
                both.append(states)
            old.hold(both, width)

    def step(self) -> Tensor:
        """The LLM reads the next token of each row. Returns the float32 logits (rows, vocabulary) of the tokens after it."""
        device, width = self.llm.device, self.cache.get_seq_length()
        lengths = torch.tensor([row.length for row in self.rows], device=device)[:, None]
        ids = torch.tensor([row.next_id for row in self.rows], device=device)[:, None]
        for row in self.rows:
            row.length += 1
        mask = torch.arange(width + 1, device=device) >= width - lengths
        out = self.llm(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=lengths,
            use_cache=True,
            **{cache_argument(self.llm): self.cache},
        )
        return out.logits[:, -1].float()

    def leave(self, finished: list[int]) -> None:
        """Remove rows. The last rows take their places, so that little is copied."""
        count = len(self.rows) - len(finished)
        vacant = [number for number in finished if number < count]
        movers = [number for number in range(count, len(self.rows)) if number not in finished]
        for number, mover in zip(vacant, movers, strict=True):
            self.rows[number] = self.rows[mover]
        del self.rows[count:]
        for layer in layers_of(self.cache):
            for states in layer.roomy:
                states[vacant] = states[movers]
            layer.hold([states[:count] for states in layer.roomy], layer.get_seq_length())


def greedy(logits: Tensor) -> Tensor:
    """The most probable token of each row, (rows,)."""
    return logits.argmax(-1)


@torch.no_grad()
def decode(
    llm: Any,
    prompts: Iterable[Prompts],
    end_ids: list[int],
    rows: int = 64,
    top_k: int = 0,
    choose: Choose = greedy,
    stop: Stop | None = None,
) -> Iterator[Decoded]:
    """The answers to all prompts, each as soon as it is complete, so in any order.

    An answer is complete after a token of `end_ids`, at its limit, or where `stop` says so. At most `rows` prompts are answered
    at a time. `top_k` is the number of most probable tokens that are kept of each step. `prompts` is read as places get free.
    """
    llm.eval()
    waiting = in_parts(prompts, rows)
    following = next(waiting, None)
    running = RunningRows(llm)
    while running.rows or following:
        joining: list[tuple[tuple[int, int], Prompts]] = []
        free = rows - len(running.rows)
        while following and len(following[1].ends) <= free and (joining or free >= FREE_SHARE * rows):
            joining.append(following)
            free -= len(following[1].ends)
            following = next(waiting, None)
        if joining:
            running.join(joining)
        logits = running.step()
        tokens = choose(logits).tolist()
        top = logits.topk(top_k)
        logprobs = (top.values - logits.logsumexp(-1, keepdim=True) if top_k else top.values).cpu().numpy()
        finished = []
        for number, (row, token, *kept) in enumerate(
            zip(running.rows, tokens, top.indices.cpu().numpy(), logprobs, strict=True)
        ):
            row.ids.append(token)
            row.tops.append((kept[0], kept[1]))
            row.next_id = token
            if token in end_ids or len(row.ids) >= row.limit or (stop and stop(row.ids)):
                finished.append(number)
        yield from [running.rows[number].decoded() for number in finished]
        if finished:
            running.leave(finished)


def in_parts(prompts: Iterable[Prompts], rows: int) -> Iterator[tuple[tuple[int, int], Prompts]]:
    """The prompts in parts of at most `rows` ends, each with its number and the number of its first end."""
    for number, group in enumerate(prompts):
        for first in range(0, len(group.ends), rows):
            part = slice(first, first + rows)
            yield (number, first), Prompts(group.start, group.ends[part], group.limits[part])
