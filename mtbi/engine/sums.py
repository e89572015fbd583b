"""The results of a training step, added over micro-batches and processes by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
    skipped: int  #: micro-batches of all processes left out because their loss was not finite
    stop: bool  #: some process was asked to stop
    unreadable: int  #: utterances of the step left out as lost or damaged
    failed: bool  #: some process had no data, so that no weight was changed
    lost: bool  #: the gradient was not finite although the losses were: so are the weights now
    means: Means  #: everything to log, float64 on the CPU; `loss` is among them
    gradient_norm: float  #: before clipping

    def with_gradient(self, norm: float) -> StepSums:
        """The same sums, of a step whose gradient has this norm before clipping."""
        return replace(self, gradient_norm=norm, lost=not math.isfinite(norm))


class Sums:
    """Adds up a step's results on the device. The processes exchange them once, and only then the host waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.means: Means = {}
        self.bad = torch.zeros((), dtype=torch.float64, device=device)  #: micro-batches whose loss is not finite
        self.flags = dict.fromkeys(("stop", "unreadable", "failed"), 0.0)

    def add(self, out: LossOutput, stop: bool = False, unreadable: int = 0, failed: bool = False) -> Tensor:
        """Add a micro-batch, unless its loss is not finite. Returns whether it is, () bool on the device.

        The names in `out.means` must be the same on all processes and in all micro-batches.
        """
        finite = torch.isfinite(out.loss.detach())
        self.bad = self.bad + ~finite
        means = {name: torch.where(finite, mean.double().nan_to_num(0.0, 0.0, 0.0), 0.0) for name, mean in out.means.items()}
        self.means = add(self.means, means)
        for name, count in {"stop": stop, "unreadable": unreadable, "failed": failed}.items():
            self.flags[name] += float(count)
        return finite

    def exchange(self) -> StepSums:
        """The sums over all processes as numbers, without a gradient. All processes must call it together."""
        import deepspeed.comm as dist

        flags = torch.tensor([*self.flags.values()], dtype=torch.float64, device=self.bad.device)
        shared = torch.cat([flags, self.bad[None], *(mean.flatten() for mean in self.means.values())])
        dist.all_reduce(shared)
        shared = shared.cpu()
        stop, unreadable, failed, bad = shared[:4].tolist()
        parts = shared[4:].split([mean.numel() for mean in self.means.values()])
        means = {name: part.view_as(mean) for (name, mean), part in zip(self.means.items(), parts, strict=True)}
        loss, weight = means["loss"].tolist() if means else (0.0, 0.0)
        return StepSums(loss, weight, int(bad), stop > 0, int(unreadable), failed > 0, False, means, 0.0)
