from __future__ import annotations

from dataclasses import replace

import pytest

from mtbi import recipe as recipes
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer, read_chat
from mtbi.llm.vocabulary import add_new_tokens

NAMES = ["<speaker1>", "<speaker2>", "<pause>"]


def with_tokens(*names: str, hidden: str = "") -> ChatFormat:
    demo = recipes.load("demo")
    model = replace(demo.model, new_tokens=list(names), hidden_tokens=[hidden] if hidden else [])
    return read_chat(replace(demo, model=model))


@pytest.fixture(scope="module")
def tagged() -> ChatFormat:
    return with_tokens(*NAMES, hidden="<pause>")


def test_ids_follow_the_tokenizers_own(tagged):
    plain = load_llm_tokenizer("demo")
    assert tagged.tokenizer.convert_tokens_to_ids(NAMES) == [len(plain), len(plain) + 1, len(plain) + 2]
    assert plain.get_vocab().items() <= tagged.tokenizer.get_vocab().items()


def test_an_answer_may_spell_them_and_text_shows_all_but_the_hidden_one(tagged):
    ids = tagged.answer_ids("<speaker1>one two<pause><speaker2>three")
    first, second, pause = tagged.tokenizer.convert_tokens_to_ids(NAMES)
    assert [token for token in ids if token >= first] == [first, pause, second]
    assert tagged.decode([*ids, tagged.end_id]) == tagged.decode(tagged.answer_ids("<speaker1>one two<speaker2>three"))
    assert tagged.decode(ids).replace(" ", "") == "<speaker1>onetwo<speaker2>three"


def test_a_user_cannot_spell_them(tagged):
    first = tagged.tokenizer.convert_tokens_to_ids(NAMES[0])
    assert first not in tagged.plain_ids("one <speaker1> two")
    assert first not in tagged.dialogue_ids("one <speaker1> two", "what does <speaker1> say")


def test_answers_stored_without_them_are_accepted_and_those_with_others_are_not(chat, tagged):
    assert tagged.fingerprint == chat.fingerprint
    assert not identity.difference(identity.facts_of(chat), tagged)
    fewer = identity.facts_of(with_tokens("<speaker1>"))
    assert not identity.difference(fewer, tagged)
    assert "new tokens (<speaker1>)" in identity.difference(fewer, chat)
    assert "new tokens" in identity.difference(identity.facts_of(with_tokens("<speaker2>")), tagged)


@pytest.mark.parametrize(
    ("names", "hidden", "message"),
    [
        (["speaker"], [], "must have brackets"),
        (["<a b>"], [], "must have brackets"),
        (["<a>", "<a>"], [], "<a> is a token already"),
        (["<a>"], ["<b>"], "<b> is not in model.new_tokens"),
    ],
)
def test_mistakes_are_named(names, hidden, message):
    with pytest.raises(UserError, match=message):
        add_new_tokens(load_llm_tokenizer("demo"), names, hidden)
