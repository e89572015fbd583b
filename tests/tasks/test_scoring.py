from __future__ import annotations

import pytest

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


def test_english_numbers_and_contractions_count_as_the_same_words() -> None:
    assert scoring.wer(["I can't come at 3"], ["i cannot come at three"]) != 0
    assert scoring.wer(["I can't come at 3"], ["i can not come at three"], english=True) == 0


def test_translations_and_free_texts_are_compared_by_their_pieces() -> None:
    assert scoring.bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(1)
    assert scoring.bleu(["something else entirely here"], ["the cat sat on the mat"]) < 0.1
    assert 0.3 < scoring.chrf(["the cat sat"], ["the cats sat down"]) < 1


def test_an_answer_follows_when_all_of_it_has_the_form() -> None:
    assert scoring.follows(" - one\n- two ", "(- .+\n?)+")
    assert not scoring.follows("Sure: - one", "(- .+\n?)+")


def test_nearness_is_by_the_scorer() -> None:
    assert scoring.nearness("exact", "A.", "a") == 1
    assert scoring.nearness("wer", "a b", "a c") == 0.5
    assert scoring.nearness("wer", "a b c d", "a") == 0
    assert 0.3 < scoring.nearness("similarity", "the cat sat", "the cats sat down") < 1
