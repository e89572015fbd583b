"""How long a run takes on so many GPUs, from the speed of one and the bytes that travel between them; the table of `mtbi plan`.

Bytes follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) and its weights whole in each node (hpZ of ZeRO++, Wang et al.
2023, arXiv 2306.10209). Gathering weights runs beside the computation, summing gradients after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from mtbi.engine import memory
from mtbi.engine.ds_config import micro_batch_count
from mtbi.engine.memory import MemoryEstimate, Sizes
from mtbi.recipe import Recipe


@dataclass(frozen=True)
class Speeds:
    """What was measured."""

    tokens: float  #: LLM positions a second that one GPU learns alone: `tok/s` in the log of a run on one
    network: float  #: bus bandwidth of a collective over all GPUs, GB/s, as launcher/preflight.py prints it
    node: float = 300.0  #: the same within a node


@dataclass(frozen=True)
class Pace:
    """Seconds of one global step."""

    compute: float
    gather: float  #: of frozen weights, while computing
    reduce: float  #: of gradients and the weights that train

    @property
    def step(self) -> float:
        """One after the other, but for gathering, which is hidden as far as there is computation."""
        return max(self.compute, self.gather) + self.reduce


def ring_seconds(size: float, members: int, speed: float) -> float:
    """An all-gather or a reduce-scatter of `size` bytes in a ring of so many members, at a bus bandwidth in GB/s."""
    return size * (members - 1) / members / (speed * 1e9)


def predict(recipe: Recipe, sizes: Sizes, estimate: MemoryEstimate, gpus: int, gpus_per_node: int, speeds: Speeds) -> Pace:
    """The pace of a recipe shared in the way of `estimate`. Every GPU computes as many micro-batches as the busiest one."""
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
    """One way of sharing a job of so many GPUs."""

    gpus: int
    memory: MemoryEstimate
    total_gb: float
    fits: bool
    best: bool  #: the one to take
    step_seconds: float | None = None  #: this and the next two only where speeds are known
    tokens_per_second: float | None = None
    days: float | None = None  #: of `train.steps`


@dataclass(frozen=True)
class Table:
    """What jobs of several sizes need."""

    sizes: Sizes
    gpu_gb: float
    gpus_per_node: int
    rows_per_step: int
    choices: list[Choice]


def tabulate(recipe: Recipe, gpus: list[int], gpu_gb: float, gpus_per_node: int, speeds: Speeds | None = None) -> Table:
    """Memory for several sizes of a job, with the stage to take; with `speeds` also time. Raises UserError without a model."""
    sizes, plan = memory.sizes_of(recipe), recipe.plan
    choices = []
    for number in gpus:
        found, best = memory.survey(recipe, sizes, number, gpu_gb, gpus_per_node)
        for one in found:
            choice = Choice(number, one, one.total, memory.fits(one, gpu_gb), one is best)
            if speeds:
                step = predict(recipe, sizes, one, number, gpus_per_node, speeds).step
                rate, days = plan.rows_per_step * plan.row_tokens / step, recipe.train.steps * step / 86_400
                choice = replace(choice, step_seconds=step, tokens_per_second=rate, days=days)
            choices.append(choice)
    return Table(sizes, gpu_gb, gpus_per_node, plan.rows_per_step, choices)


def render(table: Table) -> str:
    """The table as text."""
    sizes, timed = table.sizes, any(choice.days is not None for choice in table.choices)
    lines = [
        f"LLM {sizes.llm / 1e9:.2f} B, encoder {sizes.encoder / 1e9:.2f} B, trained {sizes.trainable / 1e6:.1f} M parameters; "
        f"GPUs of {table.gpu_gb:g} GB, {table.gpus_per_node} in a node",
        f"{'GPUs':>6} {'frozen':>8} {'trained':>8} {'activ.':>8} {'gathered':>8} {'total GB':>9}"
        + (f" {'step s':>8} {'tok/s':>10} {'days':>6}" if timed else ""),
    ]
    for number, choices in groupby(table.choices, key=lambda choice: choice.gpus):
        found = list(choices)
        recomputed = found[0].memory.recomputed
        if recomputed:
            lines.append(f"{number:6d} with activations recomputed:")
        for one in found:
            need = one.memory
            numbers = " ".join(f"{value:8.2f}" for value in (need.frozen, need.trainable, need.activations, need.gathered))
            time = f" {one.step_seconds:8.2f} {one.tokens_per_second:10,.0f} {one.days:6.2f}" if timed else ""
            mark = "  ← take this" if one.best else "" if one.fits else "  does not fit"
            lines.append(f"{number:6d} {numbers} {one.total_gb:9.2f}{time}  {need.name}{mark}")
        if not any(one.best for one in found):
            first = "" if recomputed else "turn on model.activation_checkpointing, "
            lines.append(
                f"{number:6d} nothing fits: {first}lower plan.row_tokens or plan.rows_per_micro_batch, "
                "or take ds_configs/zero3_offload.json"
            )
        if number > table.rows_per_step:
            lines.append(f"{number:6d} {number - table.rows_per_step} GPUs have no row: raise plan.rows_per_step")
    return "\n".join(lines)
