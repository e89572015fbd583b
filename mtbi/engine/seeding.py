"""Seeds dropout from the run's seed, the step and the rows alone.

A micro-batch that is computed again gets the same masks, after an evaluation, a roll-back or a restart. So a checkpoint stores
no random state. Processes compute different rows, so their masks differ. With `plan.rows_per_micro_batch=1` a row's masks do
not depend on the number of processes. With more rows they do.
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
