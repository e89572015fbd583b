"""Predicts a run's time on several GPUs from the speed of one GPU and of the network; the table of `mtbi plan`.

Traffic follows ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) and hpZ of ZeRO++, which keeps the weights whole in each node
(Wang et al. 2023, arXiv 2306.10209). Weights are gathered during the computation. Gradients are summed after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from mtbi.engine import memory
from mtbi.engine.ds_config import micro_batch_count
from mtbi.engine.memory import MemoryEstimate, Sizes
from mtbi.engine.trained import CheckpointSize
from mtbi.recipe import Recipe


@dataclass(frozen=True)
class Speeds:
    """Measured speeds."""

    tokens: float  #: LLM positions per second of a run on one GPU: `tok/s` in its log
    network: float  #: bus bandwidth of a collective over all GPUs, GB/s, as launcher/preflight.py prints it
    node: float = 300.0  #: the same within a node, GB/s


@dataclass(frozen=True)
class Pace:
    """The seconds of one global step."""

    compute: float
    gather: float  #: of frozen weights, during the computation
    reduce: float  #: of gradients and trainable weights

    @property
    def step(self) -> float:
        """The total. Gathering takes extra time only where it is longer than the computation."""
        return max(self.compute, self.gather) + self.reduce


def ring_seconds(size: float, members: int, speed: float) -> float:
    """Seconds of an all-gather or reduce-scatter of `size` bytes in a ring, at a bus bandwidth of `speed` GB/s."""
    return size * (members - 1) / members / (speed * 1e9)


def predict(recipe: Recipe, sizes: Sizes, estimate: MemoryEstimate, gpus: int, gpus_per_node: int, speeds: Speeds) -> Pace:
    """The pace of a recipe with the sharding of `estimate`. Every GPU counts as busy as the busiest one."""
    width, count = memory.weight_bytes(recipe), micro_batch_count(recipe, gpus)
    in_node = min(gpus, gpus_per_node)
    across = speeds.node if gpus <= gpus_per_node else speeds.network
    trained = sizes.trainable * width
    gather = 0.0
    if estimate.stage == 3:  # for the forward pass, and again for the backward pass
        again = ring_seconds(sizes.llm * width, in_node, speeds.node) if "hpZ" in estimate.name else None
        once = ring_seconds(sizes.llm * width, gpus, across)
        gather = count * (once + (once if again is None else again))
    sums = 1 if estimate.stage == 1 else count
    return Pace(
        count * recipe.plan.rows_per_micro_batch * recipe.plan.row_tokens / speeds.tokens,
        gather,
        (sums + 1) * ring_seconds(trained, gpus, across),
    )


@dataclass(frozen=True)
class Choice:
    """One way of sharding a job on `gpus` GPUs."""

    gpus: int
    memory: MemoryEstimate
    total_gb: float
    fits: bool
    best: bool  #: the recommended one
    step_seconds: float | None = None  #: this and the next two only if speeds are known
    tokens_per_second: float | None = None
    days: float | None = None  #: for `train.steps`


@dataclass(frozen=True)
class Table:
    """The choices for jobs of several sizes."""

    sizes: Sizes
    gpu_gb: float
    gpus_per_node: int
    rows_per_step: int
    choices: list[Choice]
    checkpoint: CheckpointSize


def tabulate(recipe: Recipe, gpus: list[int], gpu_gb: float, gpus_per_node: int, speeds: Speeds | None = None) -> Table:
    """The choices for each number of GPUs; with `speeds` also their time. Raises UserError if a model cannot be read."""
    sizes, plan = memory.sizes_of(recipe), recipe.plan
    choices = []
    for number in gpus:
        estimates, best = memory.survey(recipe, sizes, number, gpu_gb, gpus_per_node)
        for estimate in estimates:
            choice = Choice(number, estimate, estimate.total, memory.fits(estimate, gpu_gb), estimate is best)
            if speeds:
                step = predict(recipe, sizes, estimate, number, gpus_per_node, speeds).step
                rate, days = plan.rows_per_step * plan.row_tokens / step, recipe.train.steps * step / 86_400
                choice = replace(choice, step_seconds=step, tokens_per_second=rate, days=days)
            choices.append(choice)
    return Table(sizes, gpu_gb, gpus_per_node, plan.rows_per_step, choices, memory.checkpoint_of(recipe, sizes))


def render(table: Table) -> str:
    """The table as text."""
    sizes, timed = table.sizes, any(choice.days is not None for choice in table.choices)
    lines = [
        f"LLM {sizes.llm / 1e9:.2f} B, encoder {sizes.encoder / 1e9:.2f} B, trained {sizes.trainable / 1e6:.1f} M parameters; "
        f"GPUs of {table.gpu_gb:g} GB, {table.gpus_per_node} in a node",
        f"checkpoints: {table.checkpoint}",
        f"{'GPUs':>6} {'frozen':>8} {'trained':>8} {'activ.':>8} {'gathered':>8} {'total GB':>9}"
        + (f" {'step s':>8} {'tok/s':>10} {'days':>6}" if timed else ""),
    ]
    for number, group in groupby(table.choices, key=lambda choice: choice.gpus):
        choices = list(group)
        recomputed = choices[0].memory.recomputed
        if recomputed:
            lines.append(f"{number:6d} with activations recomputed:")
        for choice in choices:
            need = choice.memory
            numbers = " ".join(f"{value:8.2f}" for value in (need.frozen, need.trainable, need.activations, need.gathered))
            time = f" {choice.step_seconds:8.2f} {choice.tokens_per_second:10,.0f} {choice.days:6.2f}" if timed else ""
            mark = "  ← take this" if choice.best else "" if choice.fits else "  does not fit"
            lines.append(f"{number:6d} {numbers} {choice.total_gb:9.2f}{time}  {need.name}{mark}")
        if not any(choice.best for choice in choices):
            first = "" if recomputed else "turn on model.activation_checkpointing, "
            lines.append(
                f"{number:6d} nothing fits: {first}lower plan.row_tokens or plan.rows_per_micro_batch, "
                "or take ds_configs/zero3_offload.json"
            )
        if number > table.rows_per_step:
            lines.append(f"{number:6d} {number - table.rows_per_step} GPUs have no row: raise plan.rows_per_step")
    return "\n".join(lines)
