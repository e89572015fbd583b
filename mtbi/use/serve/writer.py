"""An answer while it is written: its text without the texts that end it, in pieces that will not change any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from mtbi.llm.vocabulary import decode
from mtbi.text_units import unspaced


class Writer(BaseStreamer):
    """Gets the tokens of an answer from transformers' `generate`, one by one; `full` tells when to stop.

    A piece of text is given out once it is certain: words when the next one has begun, since a tokenizer may still change
    the space before a mark, and nothing that may be the beginning of a stop text. The pieces together are `text`.
    """

    def __init__(
        self,
        tokenizer: Any,
        end_ids: Collection[int],
        stops: Sequence[str] = (),
        emit: Callable[[str], object] = lambda _piece: None,
    ) -> None:
        self.tokenizer, self.end_ids, self.stops, self.emit = tokenizer, end_ids, stops, emit
        self.tokens: list[int] = []  #: of the answer, without the end token
        self.text = ""  #: of the answer as far as it has come, without spaces around it
        self.finish = "length"  #: or "stop": an end token or a stop text came
        self.abandoned = threading.Event()  #: set by whoever wants no more of it
        self._sent = 0

    def full(self) -> bool:
        """Whether nothing more is wanted."""
        return self.finish == "stop" or self.abandoned.is_set()

    def put(self, value: Tensor) -> None:
        """Further tokens; first comes the prompt, of which there are none where it is embedded."""
        for token in value.flatten().tolist():
            if self.finish == "stop":
                return
            if token in self.end_ids:
                self.finish = "stop"
            else:
                self.tokens.append(token)
        decoded = decode(self.tokenizer, self.tokens).lstrip()
        cut = min((place for place in map(decoded.find, self.stops) if place >= 0), default=None)
        if cut is not None:
            self.finish, decoded = "stop", decoded[:cut]
        self.text = decoded.rstrip() if self.finish == "stop" else decoded
        self._give(len(self.text) if self.finish == "stop" else self._certain())

    def end(self) -> None:
        """No further token comes."""
        self.text = self.text.rstrip()
        self._give(len(self.text))

    def _give(self, until: int) -> None:
        if piece := self.text[self._sent : until]:
            self._sent = until
            self.emit(piece)

    def _certain(self) -> int:
        """Characters of the text that no further token changes."""
        text = self.text.rstrip("\ufffd")  # part of a character whose other bytes are still to come
        words = len(text) if text and unspaced(text[-1]) else text.rfind(" ")
        words = max(words, text.rfind("\n"))
        begun = min((len(text) - length for stop in self.stops if (length := _overlap(text, stop))), default=len(text))
        return len(text[: max(0, min(words, begun))].rstrip())


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` with which the text ends, shorter than all of it."""
    return next((length for length in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:length])), 0)
