from __future__ import annotations

from pathlib import Path

import pytest

from mtbi.errors import UserError
from mtbi.tasks.chat import ChatFormat, load_llm_tokenizer


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_llm_tokenizer("demo"))


def test_a_dialogue_is_what_the_template_renders(chat: ChatFormat) -> None:
    content = "three five\nhow many digits are there"
    rendered = chat.tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert chat.dialogue_ids("three five", "how many digits are there") == rendered


def test_the_system_prompt_is_in_the_prefix_and_changes_the_fingerprint(chat: ChatFormat) -> None:
    other = ChatFormat(chat.tokenizer, "count them")
    assert len(other.prefix_ids) > len(chat.prefix_ids)
    assert other.suffix_ids("repeat it") == chat.suffix_ids("repeat it")
    assert other.fingerprint != chat.fingerprint


def test_turns_follow_one_another_as_in_the_template(chat: ChatFormat) -> None:
    talk = [
        {"role": "user", "content": "three five\ncount them"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "repeat it"},
    ]
    rendered = chat.tokenizer.apply_chat_template(talk, add_generation_prompt=True)
    first = [*chat.dialogue_ids("three five", "count them"), *chat.text_ids("two"), chat.end_id]
    assert [*first, *chat.turn_ids("repeat it")] == rendered


def test_words_are_tokenised_one_by_one_as_the_whole_would_be(chat: ChatFormat) -> None:
    words = ["um", "three", "five", "nine"]
    assert [i for ids in chat.word_ids(words) for i in ids] == chat.text_ids("um three five nine")


def test_the_end_token_is_the_templates(chat: ChatFormat) -> None:
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == "<|end|>"


def test_no_chat_template_is_a_clear_error(chat: ChatFormat) -> None:
    tokenizer = load_llm_tokenizer("demo")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(tokenizer)


def test_no_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer can be read"):
        load_llm_tokenizer(str(tmp_path))
