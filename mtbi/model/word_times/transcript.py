"""Transcripts and languages as Whisper's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from mtbi import text_units
from mtbi.errors import UserError
from mtbi.llm.control_tokens import Tokens

#: Codes of languages that Whisper names otherwise.
OTHER_CODES = {"jv": "jw", "nb": "no", "iw": "he", "in": "id", "cmn": "zh", "fil": "tl"}


@dataclass(frozen=True)
class WhisperText:
    """A transcript in Whisper's tokens, and where its units and its tokens begin."""

    ids: list[int]
    token_bytes: np.ndarray  #: (tokens + 1,) at which byte of the text each token begins, and where the last one ends
    unit_bytes: np.ndarray  #: (units + 1,) the same of the units

    def unit_edges(self, token_edges: np.ndarray) -> np.ndarray:
        """The times `(units + 1,)` between units, from the times `(tokens + 1,)` between tokens.

        A unit that begins inside a token, as the second character of "今天", begins within the token's time, by its bytes.
        """
        return np.interp(self.unit_bytes, self.token_bytes, token_edges)


class WhisperVocabulary:
    """Whisper's tokens of transcripts, of languages, and of the start of a transcription."""

    def __init__(self, tokenizer: Any, start: int, multilingual: bool) -> None:
        """`start` is the decoder's first token. English-only models have no tokens for languages and tasks."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        self.tokenizer, self.start, self.multilingual = tokenizer, start, multilingual
        self._tokens = Tokens(tokenizer)
        ids = {code: tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in LANGUAGES} if multilingual else {}
        self.languages: dict[str, int] = {code: i for code, i in ids.items() if i not in (None, tokenizer.unk_token_id)}
        self._transcribe, self._no_timestamps = tokenizer.convert_tokens_to_ids(["<|transcribe|>", "<|notimestamps|>"])

    def text(self, units: list[str]) -> WhisperText:
        """The tokens of a transcript's units. Transcripts in capitals are lower-cased, because Whisper spells capitals out.

        Raises UserError if the tokens do not spell the text.
        """
        capitals = not any(letter.islower() for unit in units for letter in unit)
        pieces = text_units.pieces([unit.lower() for unit in units] if capitals else units)
        if not text_units.unspaced(pieces[0]):
            pieces[0] = f" {pieces[0]}"  # Whisper's own transcripts begin with a space
        ids = self._tokens.plain_ids("".join(pieces))
        token_bytes = _edges(self.tokenizer.convert_ids_to_tokens(ids))  # a byte-level vocabulary has one letter for each byte
        unit_bytes = _edges([piece.encode() for piece in pieces])
        if token_bytes[-1] != unit_bytes[-1]:
            raise UserError("the tokenizer changes the transcript")
        return WhisperText(ids, token_bytes, unit_bytes)

    def language(self, name: str) -> int | None:
        """The token of a language: "pt", "pt-BR", "Portuguese". None for no name, and in models that know English only.

        Raises UserError for a language that the model does not know.
        """
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        code = name.lower().replace("_", "-").split("-")[0]
        code = OTHER_CODES.get(code, TO_LANGUAGE_CODE.get(code, code))
        if not code or (not self.multilingual and code == "en"):
            return None
        if code not in self.languages:
            known = "Whisper does not know" if self.multilingual else "this Whisper knows English alone, not"
            raise UserError(f"{known} the language {name!r}")
        return self.languages[code]

    def prompt(self, language: int | None) -> list[int]:
        """What stands before a transcript without timestamps. Multilingual models need a language."""
        chosen = [language, self._transcribe] if language is not None else []
        return [self.start, *chosen, self._no_timestamps]


def _edges(parts: Iterable[Sized]) -> np.ndarray:
    """The offsets `(parts + 1,)` at which parts begin and the last one ends."""
    return np.array([0, *accumulate(map(len, parts))])
