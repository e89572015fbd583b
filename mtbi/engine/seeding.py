"""Random draws of training (dropout) that depend on nothing but the run's seed, the step and the rows.

No random state is kept in a checkpoint: whoever computes a micro-batch again draws the same masks again, whatever was drawn
before it by an evaluation, a roll-back or an earlier start. Processes compute other rows, so they draw other masks. With
`plan.rows_per_micro_batch=1` the masks of a row do not depend on the number of processes either; with more rows they do.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_micro_batch(seed: int, step: int, first_row: int) -> None:
    """Seed Python, numpy and torch (CPU and GPUs) for a micro-batch that begins with row `first_row` of global step `step`."""
    digest = hashlib.sha256(f"{seed} {step} {first_row}".encode()).digest()
    number = int.from_bytes(digest[:8], "little")
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
