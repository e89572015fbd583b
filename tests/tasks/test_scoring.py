from __future__ import annotations

import pytest

from mtbi.errors import UserError
from mtbi.tasks import scoring


def test_normalise_keeps_words_and_apostrophes() -> None:
    assert scoring.normalise("  I'm  here, “Adam’s” dog_ran! ") == "i'm here adam's dog ran"


def test_exact_match_ignores_case_and_punctuation() -> None:
    assert scoring.exact_match("Three, five.", "three five")
    assert not scoring.exact_match("three fife", "three five")
    assert not scoring.exact_match(None, "three")


def test_wer_counts_over_all_answers() -> None:
    assert scoring.wer(["a b c", "x"], ["a b d", "x"]) == pytest.approx(1 / 4)
    assert scoring.wer(["a"], [""]) is None


def test_score_by_name() -> None:
    assert scoring.score("wer", "a b", "a c") == pytest.approx(0.5)
    assert scoring.score("exact", "A.", "a") == 1.0
    with pytest.raises(UserError, match="unknown scorer"):
        scoring.score("bleu", "a", "a")
