"""New tokens of an LLM, and the one way from token ids back to text.

A recipe names new tokens in `model.new_tokens`. They follow the tokenizer's own ids, which stay as they are. A shown token is
part of an answer's text. A hidden one is left out of it, as the LLM's own special tokens are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mtbi.errors import UserError

#: How a new token is spelt. Words without brackets could not be written by users any more.
SPELLING = re.compile(r"<[^<>\s]+>")
#: Arguments of transformers' decoding functions. Special tokens are left out of text, among them the hidden new ones.
DECODING = {"skip_special_tokens": True}


def add_new_tokens(tokenizer: Any, names: Sequence[str], hidden: Sequence[str] = ()) -> list[int]:
    """Give a tokenizer the new tokens `names`, in place; those that are also in `hidden` do not appear in text.

    Returns their ids, which are consecutive. Raises UserError for a name that is misspelt, given twice, or known to the LLM.
    """
    if unknown := sorted(set(hidden) - set(names)):
        raise UserError(f"model.hidden_tokens: {unknown[0]} is not in model.new_tokens; name it there too")
    from transformers import AddedToken

    known, first = tokenizer.get_vocab(), len(tokenizer)
    for number, name in enumerate(names):
        if not SPELLING.fullmatch(name):
            raise UserError(f"model.new_tokens: {name!r} must have brackets and no space, for example <speaker1>")
        if name in known or name in names[:number]:
            raise UserError(f"model.new_tokens: {name} is a token already; leave it out")
        special = name in hidden
        tokenizer.add_tokens([AddedToken(name, special=special, normalized=False)], special_tokens=special)
    ids = [int(number) for number in tokenizer.convert_tokens_to_ids(list(names))]
    if ids != list(range(first, first + len(names))):
        raise UserError(f"model.new_tokens: the tokenizer of {tokenizer.name_or_path} gives new tokens no ids of their own")
    return ids


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens."""
    return tokenizer.decode(ids, **DECODING)
