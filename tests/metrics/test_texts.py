from __future__ import annotations

import pytest

from mtbi import metrics
from mtbi.metrics.texts import list_f1


def test_exact_match_ignores_case_and_punctuation() -> None:
    assert metrics.exact_match("Three, five.", "three five")
    assert not metrics.exact_match("three fife", "three five")
    assert not metrics.exact_match(None, "three")
    assert metrics.exact_match("👍 ", "👍")
    assert not metrics.exact_match("👍", "👎")
    assert not metrics.exact_match(None, "👎")


def test_wer_counts_over_all_answers() -> None:
    assert metrics.wer(["a b c", "x"], ["a b d", "x"]) == pytest.approx(1 / 4)
    assert metrics.wer(["a"], [""]) is None


def test_word_errors_of_one_answer() -> None:
    assert metrics.word_errors("a x c d", "a b c") == (2, 3)
    assert metrics.word_errors("a", "") == (0, 0)
    assert metrics.word_errors("it's 3", "it is three", english=True) == (0, 3)


def test_rouge_l_is_f1_of_the_longest_common_subsequence() -> None:
    assert metrics.rouge_l("The cat, on a mat", "the cat sat on the mat") == pytest.approx(2 * 4 / (5 + 6))
    assert metrics.rouge_l("", "") == 1
    assert metrics.rouge_l("", "a") == 0
    assert metrics.rouge_l("今天很好", "今天天气很好") == pytest.approx(2 * 4 / (4 + 6))


def test_english_numbers_and_contractions_count_as_the_same_words() -> None:
    assert metrics.wer(["I can't come at 3"], ["i cannot come at three"]) != 0
    assert metrics.wer(["I can't come at 3"], ["i can not come at three"], english=True) == 0


def test_translations_and_free_texts_are_compared_by_their_pieces() -> None:
    assert metrics.bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(1)
    assert metrics.bleu(["something else entirely here"], ["the cat sat on the mat"]) < 0.1
    assert 0.3 < metrics.chrf(["the cat sat"], ["the cats sat down"]) < 1


def test_an_answer_follows_when_all_of_it_has_the_form() -> None:
    assert metrics.follows(" - one\n- two ", "(- .+\n?)+")
    assert not metrics.follows("Sure: - one", "(- .+\n?)+")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("दिन", "दीन"),  # day, poor
        ("ปี", "ปู"),  # year, crab
        ("كَتَبَ", "كُتِبَ"),  # he wrote, it was written
        ("-5", "5"),
        ("−5", "5"),
        ("C++", "C"),
        ("C#", "C"),
        ("50%", "50"),
        ("$5", "5"),
        ("₹500", "500"),
        ("$5", "€5"),
        ("10²", "102"),
        ("½", "1 2"),
        ("#1", "1"),
        ("5 > 3", "5 < 3"),
        ("<5", "5"),
        ("2+3", "2-3"),
        ("2 × 3", "2÷3"),
        ("x = -5", "x ≠ -5"),
        ("p∧q", "p∨q"),
        ("±5", "5"),
        ("√4", "4"),
        (".5", "5"),
        ("1.5", "1 5"),
        ("5°", "5"),
        ("A♯", "A♭"),
    ],
)
def test_signs_and_marks_that_change_the_meaning_count(answer: str, reference: str) -> None:
    assert not metrics.exact_match(answer, reference)
    for scorer in ("wer", "wer_english", "cer"):
        assert metrics.SCORERS[scorer].similarity(answer, reference) < 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("cafe\u0301", "Café."),
        ("50 %", "50%"),
        ("20 °C", "20°C"),
        ("2 + 3 = 5", "2+3=5"),
        ("a < b", "a<b."),
        ("> five", "five"),
        ("five 👍", "five"),
        ("seven → five", "seven five"),
        ("5 €", "5€"),
        ("–5", "-5"),
        ("3-5", "3 5"),
        ("ＡＢＣ", "abc"),
        ("今天，天气！", "今天 天气"),
        ("我用 iPhone", "我用iPhone。"),
        ("İstanbul", "istanbul"),
        ("ΟΔΟΣ", "οδος"),
        ("❤️ soft\u00adly", "softly"),
        ("# Title", "title"),
    ],
)
def test_spellings_of_the_same_text_are_equal(answer: str, reference: str) -> None:
    assert metrics.exact_match(answer, reference)
    assert metrics.SCORERS["wer"].similarity(answer, reference) == 1


def test_without_spaces_characters_are_counted() -> None:
    answer, reference = "今天天气怎么样我很坏", "今天天气怎么样，我很好。"
    assert metrics.cer([answer], [reference]) == pytest.approx(1 / 10)
    assert metrics.wer([answer], [reference]) == pytest.approx(1 / 10)
    assert metrics.SCORERS["wer"].similarity(answer, reference) == pytest.approx(0.9)
    assert metrics.wer(["我用 Android 打电话"], ["我用 iPhone 打电话"]) == pytest.approx(1 / 6)
    assert metrics.cer(["abcd"], ["abce"]) == pytest.approx(1 / 4)
    assert metrics.cer(["x"], ["[noise]"]) is None
    by_script = {reference: True, "दिन": False, "ประเทศ": True, "in 東京 we are": False}
    assert {text: metrics.is_unspaced(text) for text in by_script} == by_script


def test_bleu_cuts_a_text_as_its_script_needs() -> None:
    from sacrebleu import corpus_bleu

    english = ["the cat, sat on (the) mat.", "It's 3.5% of U.S. men"], ["the cat sat on the mat!", "It is 3.5% of U.S. men"]
    assert metrics.bleu(*english) == pytest.approx(corpus_bleu(english[0], [english[1]]).score / 100)
    chinese = ["今天天气怎么样我很坏"], ["今天天气怎么样我很好"]
    assert metrics.bleu(*chinese) == pytest.approx(corpus_bleu(chinese[0], [chinese[1]], tokenize="zh").score / 100)
    assert metrics.bleu(["ประเทศไทย"], ["ประเทศไทย"]) == pytest.approx(1)


def test_listed_items_are_compared_in_any_order() -> None:
    listing = "- Call Anna.\n- Book a room\n- Send 1,000 invitations"
    assert list_f1("1. Send 1,000 invitations\n2. Book a room\n3. call Anna", listing) == 1
    assert list_f1("Send 1,000 invitations, book a room, and call Anna.", listing) == 1
    assert list_f1("- Book a room\n- Sleep", listing) == pytest.approx(2 / 5)
    assert list_f1("book a room, book a room", "book a room") == pytest.approx(2 / 3)
    assert list_f1("牛奶、面包", "面包，牛奶") == 1
    assert (list_f1("", ""), list_f1("", "milk")) == (1, 0)


def test_a_form_is_met_in_any_unicode_form() -> None:
    assert metrics.follows("cafe\u0301", "caf\u00e9")
