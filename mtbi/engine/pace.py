"""How long a run takes on so many GPUs, from the speed of one and the bytes that travel between them; the table of `mtbi plan`.

Bytes follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) and its weights whole in each node (hpZ of ZeRO++, Wang et al.
2023, arXiv 2306.10209). Gathering weights runs beside the computation, summing gradients after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtbi.engine import memory
from mtbi.engine.engine import micro_batches
from mtbi.engine.memory import Estimate, Sizes
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


def predict(recipe: Recipe, sizes: Sizes, estimate: Estimate, gpus: int, gpus_per_node: int, speeds: Speeds) -> Pace:
    """The pace of a recipe shared in the way of `estimate`. Every GPU computes as many micro-batches as the busiest one."""
    width, count = memory.weight_bytes(recipe), micro_batches(recipe, gpus)
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


def render(recipe: Recipe, gpus: list[int], gpu_gb: float, gpus_per_node: int, speeds: Speeds | None = None) -> str:
    """A table of memory for several sizes of a job, with the stage to take; with `speeds` also of time."""
    sizes = memory.sizes_of(recipe)
    usable, plan = memory.USABLE_SHARE * gpu_gb, recipe.plan
    lines = [
        f"LLM {sizes.llm / 1e9:.2f} B, encoder {sizes.encoder / 1e9:.2f} B, trained {sizes.trainable / 1e6:.1f} M parameters; "
        f"GPUs of {gpu_gb:g} GB, {gpus_per_node} in a node",
        f"{'GPUs':>6} {'frozen':>8} {'trained':>8} {'activ.':>8} {'gathered':>8} {'total GB':>9}"
        + (f" {'step s':>8} {'tok/s':>10} {'days':>6}" if speeds else ""),
    ]
    for number in gpus:
        found = list(memory.estimates(recipe, sizes, number, gpus_per_node))
        best = memory.choose(found, gpu_gb)
        for one in found:
            numbers = " ".join(f"{value:8.2f}" for value in (one.frozen, one.trainable, one.activations, one.gathered))
            time = ""
            if speeds:
                step = predict(recipe, sizes, one, number, gpus_per_node, speeds).step
                time = f" {step:8.2f} {plan.rows_per_step * plan.row_tokens / step:10,.0f}"
                time += f" {recipe.train.steps * step / 86_400:6.2f}"
            mark = "  ← take this" if one is best else "" if one.total <= usable else "  does not fit"
            lines.append(f"{number:6d} {numbers} {one.total:9.2f}{time}  {one.name}{mark}")
        if best is None:
            lines.append(
                f"{number:6d} nothing fits: turn on model.activation_checkpointing, lower plan.row_tokens or "
                "plan.rows_per_micro_batch, or take ds_configs/zero3_offload.json"
            )
        if number > plan.rows_per_step:
            lines.append(f"{number:6d} {number - plan.rows_per_step} GPUs have no row: raise plan.rows_per_step")
    return "\n".join(lines)
