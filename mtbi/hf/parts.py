"""Messages of a conversation as people write them, to text and waveforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtbi.audio.waveforms import waveform

#: Types of parts that hold a recording, and the keys under which it stands.
AUDIO = ("audio", "audio_url", "input_audio")
KEYS = (*AUDIO, "path", "url")
UNDERSTOOD = (
    "{'type': 'text', 'text': …} and {'type': 'audio', 'audio': RECORDING} (or 'path', 'url', 'audio_url') are understood"
)


def is_message(value: Any) -> bool:
    """Whether it is one message of a conversation."""
    return isinstance(value, Mapping) and "role" in value


def conversations(value: Any) -> list[Sequence[Mapping[str, Any]]]:
    """A conversation, or several, as a list. Raises ValueError for anything else, and where one holds no message."""
    talks = [value] if isinstance(value, (list, tuple)) and value and is_message(value[0]) else value
    if not isinstance(talks, (list, tuple)) or not talks:
        raise ValueError("a conversation is a list of messages such as {'role': 'user', 'content': …}; there is none")
    for talk in talks:
        if not isinstance(talk, (list, tuple)) or not talk or not all(is_message(message) for message in talk):
            raise ValueError(
                "a conversation is a list of messages such as {'role': 'user', 'content': …}; one is empty or none"
            )
    return list(talks)


def read_message(message: Mapping[str, Any], written: Callable[[str], str] = str) -> dict[str, Any]:
    """Its content as parts of the types `text` and `audio`: text as `written` gives it, recordings `(samples,)` at 16 kHz.

    Raises ValueError for what is neither text nor audio, and for a recording that cannot be used.
    """
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"a message's content is text or a list of parts, not {type(content).__name__}: {UNDERSTOOD}")
    return {**message, "content": [read_part(part, written) for part in content]}


def read_part(part: Any, written: Callable[[str], str] = str) -> dict[str, Any]:
    """One part, as above."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {**part, "text": written(part["text"])}
    if kind in AUDIO:
        return {"type": "audio", "audio": recording_of(part)}
    shown = f"the keys {sorted(map(str, part))}" if isinstance(part, Mapping) else f"the type {type(part).__name__}"
    raise ValueError(f"a part of a message has {shown}{f' and says type {kind!r}' if kind else ''}: {UNDERSTOOD}")


def recording_of(part: Mapping[str, Any]) -> np.ndarray:
    """The recording in a part: a path, bytes or samples, `{"url": …}`, or base64 as `{"data": …}`."""
    given = [part[key] for key in KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"a part of a message has {len(given)} recordings and the keys {sorted(map(str, part))}: {UNDERSTOOD}")
    [recording] = given
    if isinstance(recording, Mapping) and recording.get("url") is not None:
        recording = recording["url"]
    elif isinstance(recording, Mapping) and isinstance(recording.get("data"), str):
        recording = f"data:;base64,{recording['data']}"
    return waveform(recording)
