"""Text around an utterance within the user's turn, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtbi.llm.chat_format import ChatFormat


@dataclass(frozen=True)
class Surroundings:
    """The token ids of the text before and after an utterance; empty where it stands alone."""

    before: Sequence[int] = ()
    after: Sequence[int] = ()

    @classmethod
    def of(cls, chat: ChatFormat, before: str, after: str) -> Surroundings:
        """From texts. A space before the utterance is left out: a transcript begins with its own space."""
        return cls(chat.plain_ids(before.rstrip(" ")), chat.following_ids(after))

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def continues(self, chat: ChatFormat) -> bool:
        """Whether a transcript here follows text without a line break, so that its first word has a space before it."""
        return not (chat.decode(self.before) or " ")[-1].isspace()

    def transcript_ids(self, chat: ChatFormat, transcript: str) -> list[int]:
        """Token ids of a transcript that stands here."""
        return chat.transcript_ids(transcript, self.continues(chat))


ALONE = Surroundings()  #: no text around the utterance
