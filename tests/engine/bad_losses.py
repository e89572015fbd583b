"""Steps with sound that is not finite. test_engine.py runs it on two processes, and each prints what it finds as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import torch

from launcher.distributed import start_distributed
from launcher.ranks import find_ranks
from mtbi import recipe as recipes
from mtbi.batches.batch import Batch
from mtbi.batches.loader import LoadedStep, Loader
from mtbi.engine.engine import Engine
from mtbi.engine.inputs import open_inputs
from mtbi.engine.sums import StepSums

Change = Callable[[Batch], Batch]


def spoilt(batch: Batch) -> Batch:
    """The loss and the whole gradient become NaN."""
    return replace(batch, waveforms=batch.waveforms * float("nan"))


def weightless(batch: Batch) -> Batch:
    """The loss and the gradient become 0."""
    return replace(batch, target_weight=torch.zeros_like(batch.target_weight))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    ranks = find_ranks()
    recipe = recipes.load("demo", options.overrides)
    inputs = open_inputs(recipe)
    device = start_distributed(ranks)
    engine = Engine(recipe, options.deepspeed, len(inputs.shards.index.tasks), device, ranks, None)
    with Loader(inputs.shards, inputs.plan, ranks.rank, ranks.world) as loader:
        steps = [(step, list(step.micro_batches)) for step in islice(loader, 3)]
    fresh, real = engine.snapshot({}), LoadedStep.micro_batches

    def run(number: int, change: Change | None = None, chosen: tuple[int, ...] = (0, 1), rank: int | None = None) -> StepSums:
        """One step, with some of its micro-batches changed on one process, or on all."""
        step, batches = steps[number]
        mine = change if change and rank in (None, ranks.rank) else None
        changed = [mine(batch) if mine and index in chosen else batch for index, batch in enumerate(batches)]
        LoadedStep.micro_batches = property(lambda self: iter(changed))  # type: ignore[assignment, method-assign]
        return engine.train_step(step, number, stop=False)

    def state() -> dict[str, torch.Tensor]:
        taken = engine.snapshot({})
        return {**taken.trainable, **taken.moments}

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(value, other[name]) for name, value in one.items())

    found: dict[str, object] = {"micro-batches": [len(batches) for _, batches in steps]}
    run(0)
    first = state()
    bad = run(1, spoilt)
    found["all bad"] = [bad.skipped, bad.weight, bad.lost, same(state(), first), engine.optimizer_steps]
    run(2)
    after_bad = state()
    engine.restore(fresh)
    run(0)
    run(2)
    found["as without it"] = same(state(), after_bad)
    for chosen in (0, 1):
        engine.restore(fresh)
        partly = run(0, spoilt, (chosen,), rank=1)
        spoilt_state = state()
        engine.restore(fresh)
        left_out = run(0, weightless, (chosen,), rank=1)
        equal = same(state(), spoilt_state) and partly.loss == left_out.loss and partly.weight == left_out.weight
        found[f"micro-batch {chosen} of one process"] = [partly.skipped, equal, not same(spoilt_state, first)]
    LoadedStep.micro_batches = real  # type: ignore[method-assign]
    print(json.dumps(found), flush=True)
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as mtbi/train.py ends
