from __future__ import annotations

from random import Random

import pytest

from mtbi.answers import task_library
from mtbi.corpus.talkers import ask_about_talkers, keywords, overlaps
from mtbi.errors import UserError
from mtbi.scenes.segments import SpeakerSegment

SCENE = [
    SpeakerSegment("s", "bob", 0.0, 1.0, "The weather, again"),
    SpeakerSegment("s", "ann", 1.0, 2.0, "What about the meeting?"),
    SpeakerSegment("s", "bob", 2.5, 3.0, "again"),
]


def test_the_answers_are_those_of_the_library() -> None:
    fields, answers = ask_about_talkers(SCENE, "<sc>", Random(0), {"bob": "M", "ann": "female_feminine"})
    assert answers.keys() == task_library.load(["talkers"]).keys()
    names = {"bob": "The weather, again again", "ann": "What about the meeting?"}
    assert answers["all_talkers"] == f"{names['bob']} <sc> {names['ann']}"
    assert answers["all_turns"] == "The weather, again <sc> What about the meeting? <sc> again"
    assert (answers["first_talker"], answers["last_talker"]) == (names["bob"], names["ann"])
    assert answers["numbered_talker"] == list(names.values())[int(fields["talker_number"]) - 1]
    assert (answers["talker_count"], answers["talker_overlap"], fields["separator"]) == ("2", "no", "<sc>")
    [speaker] = [speaker for speaker, words in names.items() if fields["keyword"] in words]
    assert answers["keyword_talker"] == names[speaker]
    assert answers["gender_talkers"] == names[{"male": "bob", "female": "ann"}[fields["talker_gender"]]]


def test_all_talkers_of_a_gender_are_kept_in_order() -> None:
    said = [SpeakerSegment("s", name, start, start + 1.0, name) for name, start in (("c", 0.0), ("b", 2.0), ("a", 4.0))]
    drawn = [ask_about_talkers(said, "|", Random(seed), {"a": "f", "b": "male", "c": "F"}) for seed in range(9)]
    found = {(fields["talker_gender"], answers["gender_talkers"]) for fields, answers in drawn}
    assert found == {("female", "c | a"), ("male", "b")}


def test_a_keyword_is_a_word_that_one_talker_alone_says() -> None:
    assert keywords({"a": "The weather, AGAIN!", "b": "(again) the meeting?"}) == [("weather", "a"), ("meeting", "b")]
    assert keywords({"a": "one two", "b": "Two six"}) == [("one", "a"), ("six", "b")]
    assert keywords({"a": "yes", "b": "Yes."}) == []


def test_without_a_keyword_nothing_is_asked_about_it() -> None:
    segments = [SpeakerSegment("s", name, start, start + 1.0, "yes") for name, start in (("a", 0.0), ("b", 0.5))]
    fields, answers = ask_about_talkers(segments, "|", Random(0), {"a": "f"})
    assert "keyword" not in fields
    assert "keyword_talker" not in answers
    assert "gender_talkers" not in answers  # that of b is unknown
    assert (answers["all_turns"], answers["talker_overlap"]) == ("yes | yes", "yes")


def test_a_turn_inside_another_overlaps() -> None:
    spans = [(0.0, 4.0), (4.0, 5.0), (5.0, 9.0), (6.0, 7.0)]
    segments = [SpeakerSegment("s", "a", *span, "x") for span in spans]
    assert overlaps(segments)
    assert not overlaps(segments[:3])


def test_words_that_hold_the_separator_are_refused() -> None:
    with pytest.raises(UserError, match="hold the separator 'weather'"):
        ask_about_talkers(SCENE, "weather", Random(0), {})
