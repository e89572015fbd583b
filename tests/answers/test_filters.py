"""Which answers are left out of training."""

from __future__ import annotations

import pytest

from mtbi.answers.filters import RULES, CheckedAnswer, check_names, main_script, reason
from mtbi.errors import UserError

LOOP = "It is late. It is late. It is late. It is late."


@pytest.mark.parametrize(
    ("text", "truncated", "found"),
    [
        ("It is late.", False, ""),
        (" \n", False, "empty"),
        (LOOP, False, "repetitive"),
        (LOOP, True, "repetitive"),  # the reason for which it was cut off
        ("It is late, and", True, "truncated"),
        ("Уже поздно.", False, "script"),
        ("Уже late поздно.", False, "script"),
        ("7:30", False, ""),  # numbers belong to no script
    ],
)
def test_the_first_rule_that_holds_is_the_reason(text: str, truncated: bool, found: str) -> None:
    checked = CheckedAnswer("it is late", text, truncated)
    assert reason(checked, RULES) == found
    assert reason(checked, set(RULES) - {found}) in ({"truncated"} if truncated and found == "repetitive" else {""})


def test_scripts_are_told_apart() -> None:
    texts = ("ça va", "Привет", "你好", "…", "ＡＢＣ", "안녕")
    assert [main_script(text) for text in texts] == ["LATIN", "CYRILLIC", "CJK", "", "LATIN", "HANGUL"]
    # Japanese mixes scripts: an answer in characters alone is no other language than a transcript in kana.
    assert {main_script(text) for text in ("東京都", "きょうはいい", "カタカナ", "東京へ行きました")} == {"CJK"}


def test_unknown_rules_are_named() -> None:
    with pytest.raises(UserError, match=r"behaviour.filter: no rule 'repetitiv'; did you mean 'repetitive'"):
        check_names(["repetitiv"], "behaviour.filter")
