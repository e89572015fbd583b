"""The time and memory of the loss with a vocabulary of 150 thousand tokens. `python benchmarks/loss/run.py [--out FOLDER]`

Three ways compute the gradient of a micro-batch's hidden states under a frozen output layer, each in its own process:

- logits of every position, as Hugging Face's models compute them from labels
- logits of all answer positions at once
- `AnswerHead`, which computes the logits of one chunk of answer positions after the other

The last two are also measured for the divergence from a stored top-k teacher. The first two leave the gradient to autograd. The
results are the peak memory above that of weights and hidden states, seconds, and the difference of the gradients.
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
    """The input of every way."""

    output: nn.Linear
    hidden: Tensor  #: (positions, hidden)
    positions: Tensor  #: (answers,) indices of the hidden states
    ids: Tensor  #: (answers,) the stored tokens
    teacher_ids: Tensor  #: (answers, k)
    teacher_logprobs: Tensor  #: (answers, k)

    @classmethod
    def drawn(cls) -> MicroBatch:
        """The same micro-batch in every process."""
        torch.manual_seed(0)
        output = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
        hidden = torch.randn(POSITIONS, HIDDEN).requires_grad_()
        positions = torch.randperm(POSITIONS)[:ANSWERS].sort().values
        ids = torch.randint(VOCABULARY, (ANSWERS,))
        likeliest = (torch.randint(VOCABULARY, (ANSWERS, 1)) + 4001 * torch.arange(TOP_K)) % VOCABULARY  # each once
        return cls(output, hidden, positions, ids, likeliest, torch.randn(ANSWERS, TOP_K).log_softmax(-1) - 0.2)


def every_position(micro_batch: MicroBatch) -> Tensor:
    """Logits of every position. Labels are -100 where no token is predicted."""
    labels = torch.full((POSITIONS,), -100).scatter(0, micro_batch.positions, micro_batch.ids)
    return functional.cross_entropy(micro_batch.output(micro_batch.hidden).float(), labels, reduction="sum")


def answers_at_once(micro_batch: MicroBatch) -> Tensor:
    """Logits of all answer positions at once."""
    return functional.cross_entropy(
        micro_batch.output(micro_batch.hidden[micro_batch.positions]).float(), micro_batch.ids, reduction="sum"
    )


def divergence_at_once(micro_batch: MicroBatch) -> Tensor:
    """The divergence by its definition: stored tokens one by one, all others as one class."""
    logits = micro_batch.output(micro_batch.hidden[micro_batch.positions]).float()
    share, normaliser = micro_batch.teacher_logprobs.exp(), logits.logsumexp(-1)
    told = (share * (micro_batch.teacher_logprobs - logits.gather(1, micro_batch.teacher_ids) + normaliser[:, None])).sum(-1)
    others = logits.scatter(1, micro_batch.teacher_ids, -torch.inf).logsumexp(-1) - normaliser
    rest = 1 - share.sum(-1)
    return (told + rest * (rest.log() - others)).sum()


def in_chunks(micro_batch: MicroBatch, config: LossConfig) -> Tensor:
    """The stack's own."""
    batch = SimpleNamespace(
        target_ids=micro_batch.ids, teacher_ids=micro_batch.teacher_ids, teacher_logprobs=micro_batch.teacher_logprobs,
        target_weight=torch.ones(ANSWERS), target_task=torch.zeros(ANSWERS, dtype=torch.long),
    )  # fmt: skip
    return build_head(micro_batch.output, config, 1, SimpleNamespace())(micro_batch.hidden[micro_batch.positions], batch).loss


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
    micro_batch = MicroBatch.drawn()
    before = peak_gib()

    def step() -> None:
        micro_batch.hidden.grad = None
        (CROSS_ENTROPY | DIVERGENCE)[way](micro_batch).backward()

    seconds = statistics.median(timed(step) for _ in range(REPEATS))
    assert micro_batch.hidden.grad is not None
    return peak_gib() - before, seconds, micro_batch.hidden.grad


def compare(ways: Iterable[str]) -> dict[str, dict[str, float]]:
    """Each way in its own process. Gradients are compared with those of the first way."""
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
    parser.add_argument("--out", type=Path, help="folder for results.json")
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
