"""The learning rate's schedule."""

from __future__ import annotations

import math

from mtbi.recipe import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of global step `step` (from 0): linear warm-up, then half a cosine down to `min_learning_rate`.

    The steps on the alignment loss alone have such a schedule of their own before it.
    """
    if step < config.alignment_steps:
        peak = config.alignment_learning_rate or config.learning_rate
        return warm_cosine(step, config.alignment_steps, peak, config)
    return warm_cosine(step - config.alignment_steps, config.steps - config.alignment_steps, config.learning_rate, config)


def warm_cosine(step: int, steps: int, peak: float, config: TrainConfig) -> float:
    """One schedule of so many steps."""
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    span = peak - config.min_learning_rate
    return config.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))
