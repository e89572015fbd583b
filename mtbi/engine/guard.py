"""Is the run still healthy? Steps without a finite loss or any target, sudden high losses, gradients that are not finite."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from mtbi.engine.sums import StepSums
from mtbi.recipe import TrainConfig

REMEMBERED_STEPS = 100
FEWEST_STEPS = 20  # before that, no loss is called high
#: Nats a token. A corpus learnt by heart has losses that become many times as high and are still next to nothing.
SMALLEST_LOSS = 0.05


class Guard:
    """Judges each step; after a reason to roll back it starts anew. `state` is what `to_state` gave to a checkpoint."""

    def __init__(self, config: TrainConfig, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.config = config
        self.losses: deque[float] = deque(state.get("losses", []), maxlen=REMEMBERED_STEPS)
        self.bad_steps = int(state.get("bad_steps", 0))  #: in a row, up to now
        self.spikes = int(state.get("spikes", 0))  #: steps with a sudden high loss, in all

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run judges as an undisturbed one."""
        return {"losses": list(self.losses), "bad_steps": self.bad_steps, "spikes": self.spikes}

    def judge(self, sums: StepSums, parts: int) -> str:
        """Why the weights should go back to the newest good checkpoint, or nothing. `parts` are a process's micro-batches."""
        empty, skipped = not sums.weight, sums.skipped == parts
        loss = sums.loss / sums.weight if sums.weight else math.nan
        spike = self._is_spike(loss)
        self.spikes += spike
        bad = empty or spike
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if not bad:
            self.losses.append(loss)
        if sums.lost:
            why = "the gradient is not finite"
        elif self.bad_steps >= self.config.max_bad_steps:
            high = f"the loss was more than {self.config.spike_factor:g} times as high as before"
            what = high if spike else "the loss was not finite" if skipped else "there was no target to learn from"
            why = f"{what} in {self.bad_steps} steps in a row"
        else:
            return ""
        self.bad_steps = 0
        self.losses.clear()
        return why

    def _is_spike(self, loss: float) -> bool:
        factor = self.config.spike_factor
        return bool(factor) and len(self.losses) >= FEWEST_STEPS and loss > factor * max(median(self.losses), SMALLEST_LOSS)
