"""Text styles, shipped and installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtbi.corpus.text_style import strip_tags, style
from mtbi.errors import UserError


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("none", "As It is", "As It is"),
        ("lower", "AS IT Is", "as it is"),
        ("sentence", "AND I'M HERE", "And I'm here."),
        ("sentence", "northanger abbey", "Northanger abbey."),
        ("sentence", "he said i did. who? i", "He said I did. Who? I."),
        ("sentence", "Mr. McKay is here!", "Mr. McKay is here!"),
        ("sentence", "'tis so, i.e. true", "'Tis so, i.e. true."),
        ("sentence", "émile est là", "Émile est là."),
        ("sentence", "", ""),
    ],
)
def test_shipped_styles(name: str, before: str, after: str) -> None:
    assert style(name)(before) == after


def test_sentence_case_changes_nothing_the_second_time() -> None:
    once = style("sentence")("THE YEAR EIGHTEEN O THREE AND I")
    assert style("sentence")(once) == once


def test_another_package_adds_a_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_style.py").write_text("def shout(text):\n    return text.upper() + '!'\n")
    info = tmp_path / "loud_style-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-style\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtbi.text_styles]\nloud = loud_style:shout\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert style("loud")("so it is") == "SO IT IS!"


def test_unknown_style_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sentence'"):
        style("sentense")
    with pytest.raises(UserError, match=r"unknown\. Shipped: none, lower, sentence\. Installed"):
        style("xyz")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("[noise] SO I AM HERE", "[noise] So I am here."),
        ("YES <unk> NO [laughter]", "Yes <unk> no. [laughter]"),
        ("[NOISE] so. [noise] and", "[NOISE] So. [noise] And."),
        ("[noise]", "[noise]"),
        ("(laughter) OK?", "(laughter) Ok?"),
        ("!SIL HI ++NOISE++ YOU &=laughs", "!SIL Hi ++NOISE++ you. &=laughs"),
    ],
)
def test_tags_do_not_disturb_the_sentence(text: str, written: str) -> None:
    assert style("sentence")(text) == written
    assert style("lower")("A [NOISE] B") == "a [NOISE] b"


def test_words_that_were_said_laughing_stay() -> None:
    assert strip_tags("[laughter-yeah] so [laughter] ++um++ C++ is good !SIL").split() == ["yeah", "so", "C++", "is", "good"]


def test_sentence_case_is_english_and_leaves_scripts_without_spaces_alone() -> None:
    assert style("sentence")("今天天气很好") == "今天天气很好"
