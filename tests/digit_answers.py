"""Utterances of digits and the settings by which the tests ask about them."""

from __future__ import annotations

import random

from mtbi.corpus.manifest import Utterance
from mtbi.demo import world
from mtbi.recipe import BehaviourConfig

CONFIG = BehaviourConfig(library=["digits"], per_utterance=3, batch_size=16, max_new_tokens=24, top_k=8)


def make_utterances(count: int) -> list[Utterance]:
    """Digit strings without recordings; the right answer to one task is known."""
    rng = random.Random(0)
    texts = [" ".join(world.DIGITS[d] for d in world.random_digits(rng)) for _ in range(count)]
    return [
        Utterance(f"u{n}", "x.wav", text, answers={"count": world.gold_answer("count", text)}) for n, text in enumerate(texts)
    ]
