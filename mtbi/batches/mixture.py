"""A mixture of sources: how often an epoch goes over the utterances of each address of `data.shards`.

A weight of 1 is the whole source once an epoch, 2 is all of it twice. A weight of 0.3 is three tenths of its utterances, drawn
anew for every epoch. A mixture is a pure function of (index, weights, seed, epoch), as the plan is.
"""

from __future__ import annotations

import numpy as np

from mtbi.errors import UserError
from mtbi.shards.index import Index


def shard_weights(index: Index, weights: dict[str, float]) -> np.ndarray | None:
    """`(shards,)` the weight of each shard's source; None where all weights are 1. Raises UserError where all are 0."""
    named = {address.rstrip("/"): weight for address, weight in weights.items()}
    weight = np.array([named.get(origin.address, 1.0) for origin in index.origins for _ in range(origin.shards)])
    if len(weight) and not weight.any():
        raise UserError("data.weights: every source of data.shards has the weight 0; give one of them a weight above 0.")
    return weight if (weight != 1).any() else None


def repeat(utterances: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each of `utterances` as often as its weight says, both `(utterances,)`; the fraction of a weight is a probability."""
    whole = np.floor(weights).astype(np.int64)
    return np.repeat(utterances, whole + (rng.random(len(weights)) < weights - whole))
