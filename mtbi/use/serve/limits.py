"""The limits of one server, and its API key."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from mtbi.errors import UserError

KEY_VARIABLE = "MTBI_API_KEY"  #: an environment variable


class ServerLimits(BaseModel):
    """Limits of one server. Larger requests are refused."""

    megabytes: float = 25.0  #: largest request
    waiting: int = 64  #: requests at once, the one being answered included
    new_tokens: int = 512  #: longest answer
    upload_seconds: float = 120.0  #: in which a request must arrive
    rates_hz: tuple[int, int] = (4_000, 384_000)  #: lowest and highest sampling rate of a recording
    channels: int = 8  #: most channels of a recording

    @property
    def body_bytes(self) -> int:
        """Most bytes of a request."""
        return int(self.megabytes * 1e6)

    @property
    def text_bytes(self) -> int:
        """Most bytes of a request without its recordings. As Python objects they take many times as much memory."""
        return self.body_bytes // 10

    @property
    def decoded_samples(self) -> int:
        """Most samples of a recording, counted over its channels, and of all 16 kHz waveforms of a request together.

        As float32 they take half the memory of the largest request. Half a minute at 16 kHz is always possible.
        """
        return max(500_000, self.body_bytes // 8)


def read_api_key(file: Path | None) -> str:
    """The key that clients of `mtbi serve` must send: from the file, or from MTBI_API_KEY. Empty if there is neither.

    Raises UserError for an empty key, and for one that no client can send.
    """
    if file is None and KEY_VARIABLE not in os.environ:
        return ""
    source = KEY_VARIABLE if file is None else f"--api-key-file {file}"
    key = (os.environ[KEY_VARIABLE] if file is None else file.read_text(encoding="utf-8", errors="replace")).strip()
    if not key:
        raise UserError(f"{source}: empty; put a key there, or leave it out to serve everybody")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{source}: a key is one line of letters, digits and signs without spaces")
    return key
