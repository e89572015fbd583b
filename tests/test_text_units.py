from __future__ import annotations

import random
import unicodedata

import pytest

from mtbi import text_units


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Don't stop at 1999,  please!", ["Don't", "stop", "at", "1999,", "please!"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("今天天气怎么样？我很好。", ["今", "天", "天", "气", "怎", "么", "样？", "我", "很", "好。"]),
        ("「コーヒー」", ["「コ", "ー", "ヒ", "ー」"]),
        ("我用 iPhone 打电话", ["我", "用", " iPhone", " 打", "电", "话"]),
        ("我用iPhone打电话", ["我", "用", "iPhone", "打", "电", "话"]),
        ("เมืองไทย 5 ปี", ["เมื", "อ", "ง", "ไท", "ย", " 5", " ปี"]),
        ("ខ្មែរ", ["ខ្មែ", "រ"]),
        ("3.14元，C++好", ["3.14", "元，", "C++", "好"]),
        ("he said 你好 to me", ["he", "said", " 你", "好", " to", "me"]),
        ("", []),
    ],
)
def test_units_are_words_or_characters_by_the_script(text: str, units: list[str]) -> None:
    assert text_units.units(text) == units


def test_the_units_of_any_text_join_to_the_same_text() -> None:
    rng = random.Random(0)
    letters = "今天ab 5.「」()“”กเิき\u0302'-—\u200b\u3000"
    for _ in range(5000):
        text = "".join(rng.choice(letters) for _ in range(rng.randint(0, 9)))
        units = text_units.units(text)
        assert text_units.join(units) == " ".join(unicodedata.normalize("NFC", text).split())
        assert text_units.units(text_units.join(units)) == units
        if not text_units.unspaced(text):
            assert units == unicodedata.normalize("NFC", text).split()


def test_texts_typed_in_another_way_have_the_same_units() -> None:
    for text in ("größe und Straße", "한국어 문장", "がぎぐ"):
        assert text_units.units(unicodedata.normalize("NFD", text)) == text_units.units(text)
