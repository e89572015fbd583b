"""An answer while it is generated: its text up to a stop text, sent in pieces that are final."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from mtbi.llm.vocabulary import decode
from mtbi.text_units import unspaced


class Writer(BaseStreamer):
    """Receives the tokens of an answer one by one from transformers' `generate`. `full` says whether to stop.

    A piece of text is emitted when it is final. A word is final when the next one has begun, since a tokenizer may still
    change the space before a punctuation mark. What may begin a stop text is held back. All pieces together are `text`.
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
        self.text = ""  #: the answer so far, without spaces around it
        self.finish = "length"  #: "stop" after an end token or a stop text
        self.abandoned = threading.Event()  #: set when the client has left
        self._sent_characters = 0

    def full(self) -> bool:
        """Whether generating is to stop."""
        return self.finish == "stop" or self.abandoned.is_set()

    def put(self, value: Tensor) -> None:
        """Further tokens. transformers sends the prompt's first; an embedded prompt has none."""
        for token in value.flatten().tolist():
            if self.finish == "stop":
                return
            if token in self.end_ids:
                self.finish = "stop"
            else:
                self.tokens.append(token)
        decoded = decode(self.tokenizer, self.tokens).lstrip()
        cut = min((index for index in map(decoded.find, self.stops) if index >= 0), default=None)
        if cut is not None:
            self.finish, decoded = "stop", decoded[:cut]
        self.text = decoded.rstrip() if self.finish == "stop" else decoded
        self._emit(len(self.text) if self.finish == "stop" else self._final_characters())

    def end(self) -> None:
        """The answer is complete."""
        self.text = self.text.rstrip()
        self._emit(len(self.text))

    def _emit(self, until: int) -> None:
        if piece := self.text[self._sent_characters : until]:
            self._sent_characters = until
            self.emit(piece)

    def _final_characters(self) -> int:
        """The number of leading characters that no further token changes."""
        text = self.text.rstrip("\ufffd")  # part of a character whose other bytes are still to come
        words = len(text) if text and unspaced(text[-1]) else text.rfind(" ")
        words = max(words, text.rfind("\n"))
        begun = min((len(text) - length for stop in self.stops if (length := _overlap(text, stop))), default=len(text))
        return len(text[: max(0, min(words, begun))].rstrip())


def _overlap(text: str, stop: str) -> int:
    """Characters of the longest beginning of `stop` that the text ends with; all of `stop` does not count."""
    return next((length for length in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:length])), 0)
