"""Detects steps that harm a run: sudden high losses, losses or gradients that are not finite, steps without a target."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from mtbi.engine.sums import StepSums
from mtbi.recipe import TrainConfig

REMEMBERED_STEPS = 100
FEWEST_STEPS = 20  #: of good steps, before a loss can count as high
#: Nats per token. On a memorised corpus the loss can rise tenfold and still be negligible, so lower losses are no spikes.
SMALLEST_LOSS = 0.05


class Guard:
    """Judges each step. After a roll-back it forgets the earlier losses. `state` is `to_state` of a checkpoint."""

    def __init__(self, config: TrainConfig, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.config = config
        self.losses: deque[float] = deque(state.get("losses", []), maxlen=REMEMBERED_STEPS)
        self.bad_steps = int(state.get("bad_steps", 0))  #: bad steps in a row, up to now
        self.spikes = int(state.get("spikes", 0))  #: steps with a sudden high loss, over the whole run

    def to_state(self) -> dict[str, Any]:
        """The state that a checkpoint stores, so that a resumed run judges as an undisturbed one."""
        return {"losses": list(self.losses), "bad_steps": self.bad_steps, "spikes": self.spikes}

    def forget(self) -> None:
        """Forget the earlier losses."""
        self.losses.clear()

    def judge(self, sums: StepSums) -> str:
        """The reason to restore the newest good checkpoint, or ""."""
        empty = not sums.weight
        loss = sums.loss / sums.weight if sums.weight else math.nan
        spike = self._is_spike(loss)
        self.spikes += spike
        bad = empty or spike
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if not bad:
            self.losses.append(loss)
        if sums.lost:
            reason = "the gradient is not finite"
        elif self.bad_steps >= self.config.max_bad_steps:
            high = f"the loss was more than {self.config.spike_factor:g} times as high as before"
            fault = high if spike else "the loss was not finite" if sums.skipped else "there was no target to learn from"
            reason = f"{fault} in {self.bad_steps} steps in a row"
        else:
            return ""
        self.bad_steps = 0
        self.forget()
        return reason

    def _is_spike(self, loss: float) -> bool:
        factor = self.config.spike_factor
        return bool(factor) and len(self.losses) >= FEWEST_STEPS and loss > factor * max(median(self.losses), SMALLEST_LOSS)
