from __future__ import annotations

from mtbi import metrics


def test_normalise_keeps_words_and_apostrophes() -> None:
    assert metrics.normalise("  I'm  here, “Adam’s” dog_ran! ") == "i'm here adam's dog ran"
