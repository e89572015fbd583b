"""The learning rate's schedule."""

from __future__ import annotations

import math

from mtbi.recipe import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of global step `step` (from 0): linear warm-up, then half a cosine down to `min_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))
