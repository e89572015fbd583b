"""What does the loss cost with a vocabulary of 150 thousand words? `python benchmarks/loss/run.py [--out FOLDER]` prints JSON.

One micro-batch of token positions of which some are answers. Three ways to the gradient of the hidden states under a frozen
output layer, each in a process of its own: logits of every position (as Hugging Face's models make them from labels), logits of
the answers at once, and `mtbi.model.loss.AnswerHead`, whose chunks' logits exist one after the other. Measured: the peak of
memory above what weights and hidden states take, seconds, and the difference of the gradients.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import header, peak_gib, save, timed

from mtbi.model.loss import AnswerHead
from mtbi.recipe import LossConfig

VOCABULARY, HIDDEN = 151_936, 1024  # Qwen3 0.6B
POSITIONS, ANSWERS, CHUNK = 2048, 512, 128
REPEATS = 3


def micro_batch() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """Output layer, hidden states `(positions, hidden)`, places of the answers and their token ids."""
    torch.manual_seed(0)
    output = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    hidden = torch.randn(POSITIONS, HIDDEN).requires_grad_()
    places = torch.randperm(POSITIONS)[:ANSWERS].sort().values
    return output, hidden, places, torch.randint(VOCABULARY, (ANSWERS,))


def every_position(output: nn.Linear, hidden: Tensor, places: Tensor, ids: Tensor) -> Tensor:
    """Labels of -100 where nothing is to be predicted."""
    labels = torch.full((POSITIONS,), -100).scatter(0, places, ids)
    return functional.cross_entropy(output(hidden).float(), labels, reduction="sum")


def answers_at_once(output: nn.Linear, hidden: Tensor, places: Tensor, ids: Tensor) -> Tensor:
    """Logits of the answers."""
    return functional.cross_entropy(output(hidden[places]).float(), ids, reduction="sum")


def answers_in_chunks(output: nn.Linear, hidden: Tensor, places: Tensor, ids: Tensor) -> Tensor:
    """The stack's own."""
    head = AnswerHead(output, LossConfig(ce=1.0, kl=0.0, chunk=CHUNK), 1, SimpleNamespace())
    zeros = torch.zeros(ANSWERS, dtype=torch.long)
    none = torch.zeros(ANSWERS, 0)
    batch = SimpleNamespace(
        target_ids=ids, teacher_ids=none.long(), teacher_logprobs=none, target_weight=torch.ones(ANSWERS), target_task=zeros
    )
    return head(hidden[places], batch).loss


WAYS = {one.__name__: one for one in (every_position, answers_at_once, answers_in_chunks)}


def measure(way: str) -> tuple[float, float, Tensor]:
    """Peak GiB above the start, median seconds, gradient `(positions, hidden)`."""
    output, hidden, places, ids = micro_batch()
    before = peak_gib()

    def step() -> None:
        hidden.grad = None
        WAYS[way](output, hidden, places, ids).backward()

    seconds = statistics.median(timed(step) for _ in range(REPEATS))
    assert hidden.grad is not None
    return peak_gib() - before, seconds, hidden.grad


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for DATE.json")
    options = parser.parse_args()
    found = {}
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[way] = pool.submit(measure, way).result()
    gradient = found["every_position"][2]
    sizes = f"{VOCABULARY} words, hidden size {HIDDEN}, {POSITIONS} positions, {ANSWERS} answers, chunks of {CHUNK}, float32"
    record = {
        **header("torch"),
        "setting": sizes,
        "measured": {
            way: {
                "peak_gib": round(peak, 2),
                "seconds": round(seconds, 2),
                "gradient_difference": float((own - gradient).norm() / gradient.norm()),
            }
            for way, (peak, seconds, own) in found.items()
        },
    }
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
