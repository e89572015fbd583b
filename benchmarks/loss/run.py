"""What does the loss cost with a vocabulary of 150 thousand words? `python benchmarks/loss/run.py [--out FOLDER]` prints JSON.

One micro-batch of token positions of which some are answers. Three ways to the gradient of the hidden states under a frozen
output layer, each in a process of its own: logits of every position (as Hugging Face's models make them from labels), logits of
the answers at once, and `AnswerHead`, whose chunks' logits exist one after the other. The last two also for the
divergence from a stored top-k teacher; what is not `AnswerHead` leaves the gradient to autograd. Measured: the peak of memory
above what weights and hidden states take, seconds, and the difference of the gradients.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import header, peak_gib, save, timed

from mtbi.model.losses.head import build_head
from mtbi.recipe import LossConfig

VOCABULARY, HIDDEN = 151_936, 1024  # Qwen3 0.6B
POSITIONS, ANSWERS, CHUNK, TOP_K = 2048, 512, 128, 32
REPEATS = 3


class MicroBatch(NamedTuple):
    """What every way is given."""

    output: nn.Linear
    hidden: Tensor  #: (positions, hidden)
    places: Tensor  #: (answers,) positions
    ids: Tensor  #: (answers,) the stored tokens
    teacher_ids: Tensor  #: (answers, k)
    teacher_logprobs: Tensor  #: (answers, k)

    @classmethod
    def drawn(cls) -> MicroBatch:
        """The same one each time."""
        torch.manual_seed(0)
        output = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
        hidden = torch.randn(POSITIONS, HIDDEN).requires_grad_()
        places = torch.randperm(POSITIONS)[:ANSWERS].sort().values
        ids = torch.randint(VOCABULARY, (ANSWERS,))
        likeliest = (torch.randint(VOCABULARY, (ANSWERS, 1)) + 4001 * torch.arange(TOP_K)) % VOCABULARY  # each once
        return cls(output, hidden, places, ids, likeliest, torch.randn(ANSWERS, TOP_K).log_softmax(-1) - 0.2)


def every_position(one: MicroBatch) -> Tensor:
    """Labels of -100 where nothing is to be predicted."""
    labels = torch.full((POSITIONS,), -100).scatter(0, one.places, one.ids)
    return functional.cross_entropy(one.output(one.hidden).float(), labels, reduction="sum")


def answers_at_once(one: MicroBatch) -> Tensor:
    """Logits of the answers."""
    return functional.cross_entropy(one.output(one.hidden[one.places]).float(), one.ids, reduction="sum")


def divergence_at_once(one: MicroBatch) -> Tensor:
    """Named tokens one by one, all others as one class, as it is defined."""
    logits = one.output(one.hidden[one.places]).float()
    share, normaliser = one.teacher_logprobs.exp(), logits.logsumexp(-1)
    told = (share * (one.teacher_logprobs - logits.gather(1, one.teacher_ids) + normaliser[:, None])).sum(-1)
    others = logits.scatter(1, one.teacher_ids, -torch.inf).logsumexp(-1) - normaliser
    rest = 1 - share.sum(-1)
    return (told + rest * (rest.log() - others)).sum()


def in_chunks(one: MicroBatch, config: LossConfig) -> Tensor:
    """The stack's own."""
    batch = SimpleNamespace(
        target_ids=one.ids, teacher_ids=one.teacher_ids, teacher_logprobs=one.teacher_logprobs,
        target_weight=torch.ones(ANSWERS), target_task=torch.zeros(ANSWERS, dtype=torch.long),
    )  # fmt: skip
    return build_head(one.output, config, 1, SimpleNamespace())(one.hidden[one.places], batch).loss


CROSS_ENTROPY: dict[str, Callable[[MicroBatch], Tensor]] = {
    "every_position": every_position,
    "answers_at_once": answers_at_once,
    "answers_in_chunks": partial(in_chunks, config=LossConfig(ce=1.0, kl=0.0, chunk=CHUNK)),
}
DIVERGENCE: dict[str, Callable[[MicroBatch], Tensor]] = {
    "divergence_at_once": divergence_at_once,
    "divergence_in_chunks": partial(in_chunks, config=LossConfig(ce=0.0, kl=1.0, chunk=CHUNK)),
}


def measure(way: str) -> tuple[float, float, Tensor]:
    """Peak GiB above the start, median seconds, gradient `(positions, hidden)`."""
    one = MicroBatch.drawn()
    before = peak_gib()

    def step() -> None:
        one.hidden.grad = None
        (CROSS_ENTROPY | DIVERGENCE)[way](one).backward()

    seconds = statistics.median(timed(step) for _ in range(REPEATS))
    assert one.hidden.grad is not None
    return peak_gib() - before, seconds, one.hidden.grad


def compare(ways: Iterable[str]) -> dict[str, dict[str, float]]:
    """Each way in a process of its own; gradients against the first one's."""
    found = {}
    for way in ways:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[way] = pool.submit(measure, way).result()
    gradient = next(iter(found.values()))[2]
    return {
        way: {
            "peak_gib": round(peak, 2),
            "seconds": round(seconds, 2),
            "gradient_difference": float((own - gradient).norm() / gradient.norm()),
        }
        for way, (peak, seconds, own) in found.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for DATE.json")
    options = parser.parse_args()
    sizes = f"{VOCABULARY} words, hidden size {HIDDEN}, {POSITIONS} positions, {ANSWERS} answers, chunks of {CHUNK}, float32"
    record = {
        **header("torch"),
        "setting": f"{sizes}; {TOP_K} tokens of the teacher",
        "measured": compare(CROSS_ENTROPY) | compare(DIVERGENCE),
    }
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
