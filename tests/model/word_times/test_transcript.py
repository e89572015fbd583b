from __future__ import annotations

import numpy as np
import pytest
from model.word_times.conftest import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from mtbi import text_units
from mtbi.errors import UserError
from mtbi.model.word_times.transcript import WhisperVocabulary


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer("今天", " don")


@pytest.fixture(scope="module")
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> WhisperVocabulary:
    return WhisperVocabulary(tokenizer, tokenizer.convert_tokens_to_ids("<|startoftranscript|>"), multilingual=True)


def test_words_begin_at_their_tokens(vocabulary: WhisperVocabulary, tokenizer: PreTrainedTokenizerFast) -> None:
    text = vocabulary.text(["I", "don't", "know."])
    assert tokenizer.decode(text.ids) == " I don't know."
    edges = text.unit_edges(np.arange(len(text.ids) + 1.0))
    assert [tokenizer.decode(text.ids[int(start)]) for start in edges[:-1]] == [" ", " don", " "]
    assert edges[-1] == len(text.ids)


def test_capitals_are_lower_cased_but_names_keep_theirs(vocabulary: WhisperVocabulary) -> None:
    assert vocabulary.text(["HELLO", "1928"]).ids == vocabulary.text(["hello", "1928"]).ids
    assert vocabulary.text(["Hello", "NASA"]).ids != vocabulary.text(["hello", "nasa"]).ids


def test_characters_that_share_a_token_share_its_time(vocabulary: WhisperVocabulary) -> None:
    units = text_units.units("今天ก้ use")
    assert units == ["今", "天", "ก้", " use"]
    text = vocabulary.text(units)
    assert len(text.ids) == 1 + 6 + 4  # "今天" is one token; the others are one token a byte
    edges = text.unit_edges(10 * np.arange(len(text.ids) + 1.0))
    assert edges.tolist() == [0, 5, 10, 70, 110]


def test_a_transcript_cannot_write_control_tokens(vocabulary: WhisperVocabulary, tokenizer: PreTrainedTokenizerFast) -> None:
    text = vocabulary.text(["<|de|>", "yes"])
    assert not set(text.ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(text.ids) == " <|de|> yes"


@pytest.mark.parametrize(
    ("name", "code"), [("de", "de"), ("de-AT", "de"), ("EN_us", "en"), ("German", "de"), ("cmn_hans_cn", "zh"), ("jv", "jw")]
)
def test_languages_by_code_region_and_name(vocabulary: WhisperVocabulary, name: str, code: str) -> None:
    assert vocabulary.language(name) == vocabulary.languages[code]


def test_languages_that_are_unknown_or_not_given(vocabulary: WhisperVocabulary, tokenizer: PreTrainedTokenizerFast) -> None:
    assert vocabulary.language("") is None
    for unknown in ("fy-NL", "fr"):  # no language of Whisper, and none of this model
        with pytest.raises(UserError, match=f"does not know the language '{unknown}'"):
            vocabulary.language(unknown)
    english = WhisperVocabulary(tokenizer, vocabulary.start, multilingual=False)
    assert english.language("en-GB") is None
    with pytest.raises(UserError, match="knows English alone, not the language 'de'"):
        english.language("de")


def test_the_prompt_names_the_language_only_where_there_are_several(
    vocabulary: WhisperVocabulary, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = tokenizer.convert_ids_to_tokens(vocabulary.prompt(vocabulary.language("th")))
    assert prompt == ["<|startoftranscript|>", "<|th|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokenizer.convert_ids_to_tokens(vocabulary.prompt(None)) == ["<|startoftranscript|>", "<|notimestamps|>"]
