from __future__ import annotations

import pytest

from mtbi.corpus import rendering
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError

EXTRA = {"pitch": 180, "noisy": True, "note": ""}
UTTERANCE = Utterance("u1", "u1.wav", "three five", speaker="jo", duration_s=1.5, extra=EXTRA)


def test_fields_of_the_manifest_fill_the_text_around_an_utterance() -> None:
    read = rendering.read_by_llm("({speaker}, {pitch} Hz, {duration_s} s) {text}{note}\n")
    assert read.around(UTTERANCE) == ("(jo, 180 Hz, 1.5 s) ", "\n")
    assert rendering.heard("{sound} {text}").around(UTTERANCE) == ("", " three five")
    assert rendering.heard("{sound}").around(Utterance("u2", "u2.wav", "")) == ("", "")


def test_braces_that_name_no_field_stay() -> None:
    assert rendering.heard('{"said": {sound}}').around(UTTERANCE) == ('{"said": ', "}")


def test_a_field_that_is_missing_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"utterance 'u1' has no field 'gender'\. Its fields are text, speaker, "):
        rendering.read_by_llm("{gender} {text}").around(UTTERANCE)
    with pytest.raises(UserError, match="no field 'noisy'"):  # true and false are no text
        rendering.heard("{sound}{noisy}").around(UTTERANCE)


@pytest.mark.parametrize("template", ["{sound}", "", "{text} and {text}"])
def test_what_the_llm_reads_holds_the_transcript_once(template: str) -> None:
    with pytest.raises(UserError, match=r"behaviour\.reads must hold \{text\} exactly once"):
        rendering.read_by_llm(template)


def test_a_wording_is_filled_with_the_values_it_names() -> None:
    assert rendering.names_in("{a} {text} {b c} {sound} {b}{}") == {"a", "b"}
    assert rendering.fill("{a} {text} {b c} {b}", {"a": "{b}", "b": "x"}) == "{b} {text} {b c} x"


def test_the_text_llm_cannot_read_sound() -> None:
    with pytest.raises(UserError, match="the text LLM reads text alone"):
        rendering.read_by_llm("{sound} {text}")
