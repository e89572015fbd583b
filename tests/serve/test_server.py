"""A real server asked by the public API's own client."""

from __future__ import annotations

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import torch

from mtbi.chat import Conversation
from mtbi.trained import TrainedRun


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def wav(seconds: float, rate: int = 16000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, 0.1 * np.sin(np.arange(int(rate * seconds)) * 0.1), rate, format="WAV")
    return out.getvalue()


def heard(content: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}


def ask(client: openai.OpenAI, *messages: dict, **options: Any) -> str:
    answer = client.chat.completions.create(model="demo", messages=list(messages), **options)  # type: ignore[arg-type]
    return answer.choices[0].message.content or ""


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if len(content) == 1 and isinstance(content[0], str) else list(content)}


def test_text_over_several_turns(client: openai.OpenAI) -> None:
    assert client.models.list().data[0].id == "demo"
    first = user("three five seven reverse the digits")
    assert ask(client, first) == "seven five three"
    assert ask(client, first, {"role": "assistant", "content": "seven five three"}, user("count the digits")) == "three"
    answer = client.chat.completions.create(model="demo", messages=[first], max_tokens=1)  # type: ignore[list-item]
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "seven"


def test_speech_is_answered_as_in_a_conversation(client: openai.OpenAI, run: TrainedRun) -> None:
    recording = soundfile.read(io.BytesIO(wav(1)), dtype="float32")[0]
    expected = Conversation(run, 24).say([recording], "count the digits")
    parts = (heard(wav(1)), {"type": "text", "text": "count the digits"})
    assert ask(client, user(*parts)) == expected
    stream = client.chat.completions.create(model="demo", messages=[user(*parts)], stream=True)  # type: ignore[list-item]
    pieces = [event.choices[0].delta.content or "" for event in stream]
    assert "".join(pieces).strip() == expected
    mixed = ask(
        client, user(heard(wav(1)), {"type": "text", "text": "five"}, heard(wav(0.5)), {"type": "text", "text": "repeat"})
    )
    assert mixed == Conversation(run, 24).say([recording, "five", recording[:8000]], "repeat")


TEXT = {"type": "text", "text": "repeat"}


@pytest.mark.parametrize(
    ("messages", "status", "reason"),
    [
        ([], 400, "must be user, assistant"),
        ([{"role": "assistant", "content": "hello"}], 400, "must be user, assistant"),
        ([{"role": "system", "content": "be brief"}, user("one two repeat")], 400, "system prompt is part of the training"),
        ([user("")], 400, "the last message is empty"),
        ([user(heard(b"no sound at all"), TEXT)], 400, "part 1: not readable as audio"),
        (
            [user({"type": "input_audio", "input_audio": {"data": "~~~", "format": "wav"}}, TEXT)],
            400,
            "part 1: input_audio.data",
        ),
        ([user({"type": "input_audio"}, TEXT)], 400, "part 1: an input_audio part needs"),
        ([user(heard(wav(6)), TEXT)], 400, "6.0 s of speech, and the model was trained on at most 5 s"),
        ([user({"type": "image_url", "image_url": {"url": "x"}})], 400, "messages.0.content"),
        ([user(heard(wav(40)), TEXT)], 413, "a request may have 1 MB"),
    ],
)
def test_mistakes_have_a_status_and_a_reason(client: openai.OpenAI, messages: list, status: int, reason: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, *messages)
    assert caught.value.status_code == status
    assert reason in caught.value.message


def test_more_requests_than_may_wait_are_sent_away(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, say = threading.Event(), Conversation.say

    def slow(talk: Conversation, *arguments: Any) -> str:
        go_on.wait(30)
        return say(talk, *arguments)

    monkeypatch.setattr(Conversation, "say", slow)

    def one(_number: int) -> str | int:
        try:
            return ask(client, user("three five count the digits"))
        except openai.RateLimitError as error:
            go_on.set()
            return error.status_code

    with ThreadPoolExecutor(3) as pool:
        assert sorted(map(str, pool.map(one, range(3)))) == ["429", "two", "two"]
    assert ask(client, user("three five count the digits")) == "two"  # the places are free again
    assert torch.is_grad_enabled()
