"""Read the messages of a conversation: every recording in them becomes a waveform."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtbi.audio.waveforms import waveform

#: Types of parts that hold a recording, and the keys that may hold it.
AUDIO = ("audio", "audio_url", "input_audio")
KEYS = (*AUDIO, "path", "url")
UNDERSTOOD = (
    "{'type': 'text', 'text': …} and {'type': 'audio', 'audio': RECORDING} (or 'path', 'url', 'audio_url') are understood"
)


def is_message(value: Any) -> bool:
    """Whether a value is one message of a conversation."""
    return isinstance(value, Mapping) and "role" in value


def conversations(value: Any) -> list[Sequence[Mapping[str, Any]]]:
    """One conversation or several, as a list of conversations. Raises ValueError for anything else, and for an empty one."""
    talks = [value] if isinstance(value, (list, tuple)) and value and is_message(value[0]) else value
    if not isinstance(talks, (list, tuple)) or not talks:
        raise ValueError("a conversation is a list of messages such as {'role': 'user', 'content': …}; this is not one")
    for talk in talks:
        if not isinstance(talk, (list, tuple)) or not talk or not all(is_message(message) for message in talk):
            raise ValueError(
                "a conversation is a list of messages such as {'role': 'user', 'content': …}; one of these is not, or is empty"
            )
    return list(talks)


def read_message(message: Mapping[str, Any], rewrite: Callable[[str], str] = str) -> dict[str, Any]:
    """The message with `text` and `audio` parts as content. `rewrite` is applied to texts; audio is `(samples,)` at 16 kHz.

    Raises ValueError for other parts, and for an unusable recording.
    """
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"a message's content is text or a list of parts, not {type(content).__name__}: {UNDERSTOOD}")
    return {**message, "content": [read_part(part, rewrite) for part in content]}


def read_part(part: Any, rewrite: Callable[[str], str] = str) -> dict[str, Any]:
    """One part of a message, as in `read_message`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {**part, "text": rewrite(part["text"])}
    if kind in AUDIO:
        return {"type": "audio", "audio": recording_of(part)}
    shown = f"the keys {sorted(map(str, part))}" if isinstance(part, Mapping) else f"the type {type(part).__name__}"
    raise ValueError(f"a part of a message has {shown}{f' and says type {kind!r}' if kind else ''}: {UNDERSTOOD}")


def recording_of(part: Mapping[str, Any]) -> np.ndarray:
    """The recording in a part `(samples,)` at 16 kHz: a path, bytes or samples, `{"url": …}`, or base64 as `{"data": …}`.

    Raises ValueError if there is not exactly one, or if it cannot be used.
    """
    recordings = [part[key] for key in KEYS if part.get(key) is not None]
    if len(recordings) != 1:
        raise ValueError(
            f"a part of a message has {len(recordings)} recordings and the keys {sorted(map(str, part))}: {UNDERSTOOD}"
        )
    [recording] = recordings
    if isinstance(recording, Mapping) and recording.get("url") is not None:
        recording = recording["url"]
    elif isinstance(recording, Mapping) and isinstance(recording.get("data"), str):
        recording = f"data:;base64,{recording['data']}"
    return waveform(recording)
