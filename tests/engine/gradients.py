"""One float32 step, its gradients written to a file. test_engine.py runs it on different numbers of processes."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_optimizer_state
from safetensors.torch import save_file

from launcher.distributed import start_distributed
from launcher.ranks import find_ranks
from mtbi import recipe as recipes
from mtbi.batches.loader import Loader
from mtbi.engine.engine import Engine
from mtbi.engine.inputs import open_inputs
from mtbi.model import by_length


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    ranks = find_ranks()
    recipe = recipes.load("demo", options.overrides)
    inputs = open_inputs(recipe)
    device = start_distributed(ranks)
    if ranks.rank:
        by_length.CPU_CALL_SAMPLES = 0  # others call the frozen encoder more often than rank 0: none of it may be partitioned
    engine = Engine(recipe, options.deepspeed, len(inputs.shards.index.tasks), device, ranks, None)
    rows, augmentation = recipe.plan.rows_per_micro_batch, inputs.augmentation
    with Loader(inputs.shards, inputs.plan, ranks.rank, ranks.world, rows, augmentation=augmentation) as loader:
        sums = engine.train_step(next(iter(loader)), 0, stop=False)
    # After one step of Adam from zero, its first moment is (1 - beta1) times the gradient, clipping aside.
    tensors = {}
    for name, parameter in engine.parameters.items():
        moment = safe_get_full_optimizer_state(parameter, "exp_avg")
        tensors[name] = moment.reshape(getattr(parameter, "ds_shape", parameter.shape)).clone() / (1 - recipe.train.beta1)
    tensors["norm"], tensors["loss"] = torch.tensor(sums.gradient_norm), torch.tensor(sums.loss / sums.weight)
    if ranks.rank == 0:
        save_file(tensors, options.out)
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as mtbi/train.py ends
