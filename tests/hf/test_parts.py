"""Messages of a conversation: all usual ways to write a recording, and a sentence for everything else."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtbi.audio import codec
from mtbi.hf import MtbiProcessor, parts

WAVE = np.round(np.sin(np.arange(1600) * 0.1) * 9000).astype(np.float32) / 2**15


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("parts") / "a.flac"
    path.write_bytes(codec.encode(WAVE))
    return str(path)


def test_every_way_to_write_a_recording_gives_its_samples(file: str) -> None:
    data = base64.b64encode(Path(file).read_bytes()).decode()
    for part in (
        {"type": "audio", "audio": WAVE},
        {"type": "audio", "audio": {"array": WAVE, "sampling_rate": 16000}},
        {"type": "audio", "audio": None, "path": file},
        {"type": "audio", "url": f"file://{file}"},
        {"type": "audio", "audio_url": file},
        {"type": "audio_url", "audio_url": {"url": file}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/flac;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}},
    ):
        read = parts.read_message({"role": "user", "content": [part, {"type": "text", "text": "repeat"}]})
        assert [one["type"] for one in read["content"]] == ["audio", "text"]
        np.testing.assert_array_equal(read["content"][0]["audio"], WAVE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "audio", "audio_url": "https://example.org/a.wav"}], "https://example.org/a.wav: not a local file"),
        ([{"type": "audio", "path": "no.wav"}], "no.wav: no such file"),
        ([{"type": "audio"}], "has 0 recordings"),
        ([{"type": "audio", "audio": WAVE, "path": "a.wav"}], "has 2 recordings"),
        ([{"type": "input_audio", "input_audio": {"data": "größe"}}], "not audio in base64"),
        ([{"type": "image", "image": "a.png"}], "says type 'image'"),
        ([{"type": "text"}], "says type 'text'"),
        ([{"audio": WAVE}], "has the keys"),
        (["repeat"], "has the type str"),
        (None, "not NoneType"),
    ],
)
def test_everything_else_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts.read_message({"role": "user", "content": content})


@pytest.mark.parametrize("value", [[], [[]], "repeat", [{"content": "repeat"}], [None], None])
def test_what_is_no_conversation_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="a conversation is a list of messages"):
        parts.conversations(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audio": WAVE, "truncation": True, "max_length": 5}, "max_length, truncation: "),
        ({"audio": WAVE, "padding_side": "right"}, "padding_side: "),
        ({"audios": WAVE}, "audios: "),
        ({"audio": [WAVE, WAVE]}, "in the text and 2 recordings"),
        ({"audio": {"array": WAVE, "sampling_rate": 8000}, "sampling_rate": 16000}, "which one is right"),
        ({"text": [], "audio": None}, "a list of texts"),
    ],
)
def test_the_processor_drops_no_argument(merged: Path, arguments: dict[str, Any], message: str) -> None:
    processor = MtbiProcessor.from_pretrained(merged)
    with pytest.raises(ValueError, match=message):
        processor(**{"text": "<|audio|>", **arguments})


def test_the_processor_takes_one_recording_or_a_list(merged: Path, file: str) -> None:
    processor = MtbiProcessor.from_pretrained(merged)
    expected = processor(text="<|audio|> repeat", audio=[WAVE], padding=True, sampling_rate=16000)
    for audio_ in (WAVE, WAVE.tolist(), (16000, WAVE), file, [file], {"path": file, "bytes": None}):
        found = processor(text="<|audio|> repeat", audio=audio_)
        assert found["input_ids"].tolist() == expected["input_ids"].tolist()
        np.testing.assert_array_equal(found["input_values"], expected["input_values"])
