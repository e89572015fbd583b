"""Token ids of text in which nothing that a user wrote becomes a control token.

Control tokens (end of turn, roles, reasoning, padding) belong to the chat template. If a transcript or a prompt spells one, the
spelling is cut in two, and both parts are tokenised separately, so that the model reads its characters. All other text is
tokenised whole. The tokenizer's settings are not changed, since several threads use it at once.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from mtbi import text_units

CUT = "\ufdd0"  # a Unicode noncharacter, which no text contains
APART = "\ufdd3"  # another one: the texts before and after it are tokenised separately
NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
#: The spelling of added tokens that are control tokens. Others (`\n\n` of Gemma, a name that a user added) are words.
MARKUP = re.compile(r"▁?[<\[{].*[>\]}]", re.DOTALL)


class Tokens:
    """A tokenizer's token ids of text, with or without its control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def control(self) -> dict[int, str]:
        """Control tokens by id: the special ones, and those added tokens that look like markup (`<think>`)."""
        added = {number: str(token) for number, token in self.tokenizer.added_tokens_decoder.items()}
        special = dict(zip(self.tokenizer.all_special_ids, map(str, self.tokenizer.all_special_tokens), strict=True))
        flagged = {i for i, token in self.tokenizer.added_tokens_decoder.items() if getattr(token, "special", False)}
        marked = {i: text for i, text in added.items() if i in flagged or MARKUP.fullmatch(text)}
        return {i: text for i, text in (marked | special).items() if text.strip()}

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        """Any control token in a text, the longest first."""
        texts = sorted({text for text in self.control.values() if len(text) > 1}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    @cached_property
    def prefixes_space(self) -> bool:
        """Whether the tokenizer adds a space before every text, as some SentencePiece tokenizers do."""
        return self._encode("a a") == 2 * self._encode("a")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def _continued(self, text: str) -> list[int]:
        """Token ids of a text that follows another without a space."""
        if self.prefixes_space:
            before, both = self._encode("\n"), self._encode(f"\n{text}")
            if before and both[: len(before)] == before:
                return both[len(before) :]
        return self._encode(text)

    def ids(self, text: str) -> list[int]:
        """Token ids of a template's text, control tokens included. Parts that `harmless` has cut are tokenised separately."""
        ids = []
        for stretch in text.split(APART):
            first, *others = stretch.split(CUT)
            ids += self._encode(first) + [i for other in others if other for i in self._continued(other)]
        return ids

    def _forged(self, ids: list[int], text: str) -> bool:
        """Whether control tokens are among the ids of a user's text. The unknown token counts only if the text spells it."""
        unknown = self.tokenizer.unk_token_id
        forged = self.control.keys() & set(ids)
        return bool(forged - {unknown}) or (unknown in forged and str(self.tokenizer.unk_token) in text)

    def harmless(self, text: str) -> str:
        """A user's text for `ids`, in NFC, cut wherever it would become a control token."""
        text = NONCHARACTERS.sub("", text_units.nfc(text))
        if not self._forged(self._encode(text), text):
            return text
        cut = self._spelt.sub(lambda match: f"{match[0][0]}{CUT}{match[0][1:]}", text)
        # A tokenizer may accept other spellings too, for example capitals.
        return CUT.join(text) if self._forged(self.ids(cut), cut) else cut

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a user's text, without control tokens."""
        return self.ids(self.harmless(text))

    def following_ids(self, text: str) -> list[int]:
        """As `plain_ids`, of a text that directly follows something else. No space is added before it."""
        parts = [part for stretch in self.harmless(text).split(APART) for part in stretch.split(CUT) if part]
        return [i for part in parts for i in self._continued(part)]
