from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer

SMALL = {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "vocab_size": 151936}


def write_config(folder: Path, **values: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_sizes_of_a_family_differ(tmp_path: Path) -> None:
    small = identity.llm_size(write_config(tmp_path / "a", **SMALL))
    assert small == "hidden_size 1024, num_hidden_layers 28, intermediate_size 3072, vocab_size 151936"
    assert identity.llm_size(write_config(tmp_path / "b", **SMALL, dtype="float16")) == small  # the same LLM elsewhere
    assert identity.llm_size(write_config(tmp_path / "c", **SMALL | {"num_hidden_layers": 36})) != small


def test_composite_and_unknown_configurations_have_a_size(tmp_path: Path) -> None:
    composite = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 64}}
    assert "hidden_size 64" in identity.llm_size(write_config(tmp_path / "a", **composite))
    assert identity.llm_size(write_config(tmp_path / "b", model_type="new", hidden_size=8)) == "hidden_size 8"
    assert identity.llm_size(str(tmp_path)) == ""


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        ({"llm_size": "a", "llm": "x"}, {"llm_size": "b", "llm": "x"}, True),
        ({"llm_size": "a", "llm": "here/x-8B"}, {"llm_size": "a", "llm": "there/y"}, False),
        ({"llm": "Qwen/Qwen3-0.6B"}, {"llm": "/models/Qwen3-8B", "llm_size": "b"}, True),  # of a version without sizes
        ({"llm": "Qwen/Qwen3-8B"}, {"llm": "/models/qwen3-8b-hf", "llm_size": "b"}, False),
        ({"llm": "Qwen/Qwen3-8B"}, {"llm": "/models/llm", "llm_size": "b"}, False),
        ({"llm": "/hub/models--Qwen--Qwen3-0.6B/snapshots/abc"}, {"llm": "Qwen/Qwen3-8B"}, True),
    ],
)
def test_another_size_is_another_llm(first: dict, second: dict, other: bool) -> None:
    assert identity.other_llm(first, second) is other


def test_what_older_versions_made_is_judged_by_their_rule(chat: ChatFormat) -> None:
    old = {"fingerprint": chat.first_fingerprint, "llm": "demo", "prefix_ids": chat.prefix_ids, "end_id": chat.end_id}
    assert identity.difference(old, chat) == ""
    assert "beginning or end" in identity.difference({**old, "prefix_ids": [1]}, chat)
    assert "beginning or end" in identity.difference({**old, "end_id": 1}, chat)
    assert identity.difference({**old, "fingerprint": "0" * 16}, chat) == identity.OTHER
    assert identity.difference(old, ChatFormat(chat.tokenizer, "Be brief.")) == identity.OTHER
    assert identity.difference(old, ChatFormat(chat.tokenizer, variables={"um": True})) == identity.OTHER
    assert identity.difference({"fingerprint": chat.first_fingerprint, "llm": "demo"}, chat) == ""  # a folder of answers


def test_answers_of_an_older_version_with_todays_date_in_them_are_refused() -> None:
    tokenizer = load_llm_tokenizer("demo")
    tokenizer.chat_template = "{{ strftime_now('%d') }}" + tokenizer.chat_template
    chat = ChatFormat(tokenizer)
    assert "another date" in identity.difference({"fingerprint": chat.first_fingerprint, "llm": "demo"}, chat)


def test_a_date_that_the_version_before_fixed_already_is_no_obstacle() -> None:
    tokenizer = load_llm_tokenizer("demo")
    llama = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
    tokenizer.chat_template = llama + tokenizer.chat_template
    chat = ChatFormat(tokenizer)
    assert identity.difference({"fingerprint": chat.first_fingerprint, "llm": "demo"}, chat) == ""


def test_another_teacher_may_be_meant(chat: ChatFormat) -> None:
    made = identity.facts_of(chat) | {"llm_size": "hidden_size 4096"}
    assert "another size (hidden_size 4096; set behaviour.allow_other_teacher=true" in identity.difference(made, chat)
    assert identity.difference(made, chat, allow_other_teacher=True) == ""
    assert identity.difference(identity.facts_of(chat), chat) == ""
