"""The results of a training step, added over micro-batches and processes by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtbi.model.losses.head import LossOutput

Means = dict[str, Tensor]  #: as `LossOutput.means`: name → `(2,)` or `(2, tasks)`, sums and what to divide them by


def add(total: Means, more: Means) -> Means:
    """The sums of both, name by name; a name that `total` lacks counts as 0 there."""
    return {**total, **{name: total[name] + mean if name in total else mean for name, mean in more.items()}}


@dataclass
class StepSums:
    """Sums over all processes of one global step."""

    loss: float  #: weight * loss of every target
    weight: float  #: of every target that counted
    skipped: int  #: micro-batches left out because a loss was not finite
    stop: bool  #: some process was asked to stop
    unreadable: int  #: utterances of the step left out as lost or damaged
    failed: bool  #: some process had no data, so that no weight was changed
    lost: bool  #: the gradient was not finite although the losses were: so are the weights now
    means: Means  #: everything to log, float64 on the CPU; `loss` is among them
    gradient_norm: float  #: before clipping


class Sums:
    """Adds up a step's results: one small all-reduce a micro-batch."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.skipped = device, 0
        self.means: Means = {}
        self.flags = dict.fromkeys(("stop", "bad", "unreadable", "failed"), 0.0)  #: summed over processes and micro-batches

    @property
    def failed(self) -> bool:
        """Some process had no data."""
        return self.flags["failed"] > 0

    def add(self, out: LossOutput, stop: bool = False, unreadable: int = 0, failed: bool = False) -> bool:
        """Returns whether the micro-batch counts: its loss is finite on all processes, and some process has a target.

        The names in `out.means` must be the same on all processes and in all micro-batches.
        """
        import deepspeed.comm as dist

        bad = not bool(torch.isfinite(out.loss.detach()))
        flags = torch.tensor([float(stop), float(bad), float(unreadable), float(failed)], dtype=torch.float64)
        values = torch.cat([mean.double().flatten() for mean in out.means.values()])
        shared = torch.cat([flags.to(values.device), values.nan_to_num(0.0, 0.0, 0.0)])
        dist.all_reduce(shared)
        flags, values = shared[: len(flags)], shared[len(flags) :]
        everywhere = dict(zip(self.flags, flags.tolist(), strict=True))
        self.flags = {name: self.flags[name] + count for name, count in everywhere.items()}
        if everywhere["bad"]:
            self.skipped += 1
            values = torch.zeros_like(values)
        parts = values.split([mean.numel() for mean in out.means.values()])
        means = {name: part.view_as(mean) for (name, mean), part in zip(out.means.items(), parts, strict=True)}
        self.means = add(self.means, means)
        return bool(means["loss"][1] > 0)

    def result(self, gradient_norm: float) -> StepSums:
        """The sums as numbers."""
        means = {name: mean.cpu() for name, mean in self.means.items()}
        loss, weight = means["loss"].tolist() if means else (0.0, 0.0)
        lost = not math.isfinite(gradient_norm)
        stop, unreadable = self.flags["stop"] > 0, int(self.flags["unreadable"])
        return StepSums(loss, weight, self.skipped, stop, unreadable, self.failed, lost, means, gradient_norm)
