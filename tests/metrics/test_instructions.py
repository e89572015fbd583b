from __future__ import annotations

import json
from typing import Any

import pytest

from mtbi.errors import UserError
from mtbi.metrics.instructions import CHECKS, check_names, follows_all

EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    ("change_case:english_capital", {}, "TWO WORDS, 3!", "TWO Words"),
    ("change_case:english_lowercase", {}, "two words", "Two words"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "Here:\n* one\n- two", "**bold** one\n* two"),
    ("detectable_format:title", {}, "<<A talk>>\nIt is long.", "<< >> It is long."),
    ("startend:quotation", {}, ' "All of it."', 'He said "no" twice'),
    ("startend:end_checker", {"end_phrase": "The End."}, "It was. the end.", "The end. Or not"),
    ("startend:start_checker", {"start_phrase": "Well,"}, "well, yes", "Oh well, yes"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Answer:"}, "answer: no", "No. Answer: no"),
    ("keywords:existence", {"keywords": ["sea", "sky"]}, "Sky and sea", "the sky"),
    ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "a seal", "the Sea."),
    ("keywords:frequency", {"keyword": "c++", "frequency": 2, "relation": "at least"}, "C++ or c++", "C++ or C"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, "one, two - three", "one two three four"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "exactly"}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("length_constraints:number_sentences", {"num_sentences": 2}, "One. 3.5 is two", "One, and 3.5 more"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n\ntwo\n", "one two"),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), EXAMPLES)
def test_a_check_accepts_and_refuses(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert follows_all(good, [name], [arguments])
    assert not follows_all(bad, [name], [arguments])


def test_every_check_has_an_example() -> None:
    assert {name for name, *_ in EXAMPLES} == set(CHECKS)


def test_all_instructions_must_be_followed() -> None:
    names = ["change_case:english_capital", "punctuation:no_comma"]
    assert follows_all("A B", names, [])
    assert not follows_all("A, B", names, [])
    assert not follows_all(" ", ["punctuation:no_comma"], [{}])  # an empty answer follows nothing


def test_arguments_of_none_are_those_of_other_instructions() -> None:
    assert follows_all("one", ["length_constraints:number_words"], [json.loads('{"num_words": 1, "num_bullets": null}')])


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["language:response_language"], [{"language": "de"}], "cannot be checked; there are change_case:english_capital"),
        (["keywords:existence"], [{"words": ["a"]}], "unusable arguments"),
        (["length_constraints:number_words"], [{"num_words": 1, "relation": "near"}], "unusable arguments"),
        (["punctuation:no_comma"], [{}, {}], "1 instructions .* have 2 groups"),
    ],
)
def test_what_cannot_be_checked_is_refused(names: list[str], arguments: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_names(names, arguments)
