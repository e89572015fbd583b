"""A real server and the client of the public API."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import torch

from mtbi.demo.encoder import DemoAligner
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.mix import Mix, Mixer, Word
from mtbi.use.serve.server import ServerLimits, make_app


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return client_of(address)


def wav(seconds: float, rate: int = 16000) -> bytes:
    return as_file(0.1 * np.sin(np.arange(int(rate * seconds)) * 0.1), rate)


def as_file(wave: np.ndarray, rate: int = 16000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format="WAV")
    return out.getvalue()


def heard(content: bytes, **extra: Any) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav", **extra}}


def ask(client: openai.OpenAI, *messages: dict, **options: Any) -> str:
    answer = client.chat.completions.create(model="demo", messages=list(messages), **options)  # type: ignore[arg-type]
    return answer.choices[0].message.content or ""


def align(client: openai.OpenAI, body: dict) -> dict:
    return client.post("/align", cast_to=dict, body=body)


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


def test_words_are_found_and_mixed(client: openai.OpenAI, run: TrainedRun, spoken: tuple) -> None:
    content = as_file(spoken[0])
    found = align(client, {**heard(content), "transcript": "three five seven"})
    words = [{**word, "read": word["word"] == "five"} for word in found["words"]]
    assert [word["word"] for word in words] == ["three", "five", "seven"]
    assert found["duration"] == pytest.approx(words[-1]["end"], abs=1e-3)
    assert align(client, heard(content)) == found  # the recogniser hears the same words
    mix = Mix(soundfile.read(io.BytesIO(content), dtype="float32")[0], [Word(**word) for word in words])
    expected = Mixer(run).answer(Conversation(run, 24), mix, "repeat")
    question = user(heard(content, words=words), TEXT)
    assert ask(client, question) == expected != ask(client, user(heard(content), TEXT))
    stream = client.chat.completions.create(model="demo", messages=[question], stream=True)  # type: ignore[list-item]
    assert "".join(event.choices[0].delta.content or "" for event in stream).strip() == expected


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "input_audio: Field required"),
        ({"input_audio": {"data": "~~~"}}, 400, "input_audio.data is not base64"),
        (lambda: heard(b"no sound at all"), 400, "input_audio: not readable as audio"),
        (lambda: heard(wav(6)), 400, "too long: 6.0 s, more than 5 s"),
        (lambda: heard(wav(40)), 413, "a request may have 1 MB"),
        (lambda: heard(as_file(np.zeros(16_000))), 400, "no word was recognised"),
        (lambda: {**heard(wav(0.05)), "transcript": "one two three four"}, 400, "too short for its words"),
        (lambda: {**heard(wav(1)), "transcript": "one " * 5000}, 400, "transcript: String should have at most"),
    ],
)
def test_mistakes_in_asking_for_words(client: openai.OpenAI, body: Any, status: int, reason: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        align(client, body() if callable(body) else body)
    assert caught.value.status_code == status
    assert reason in caught.value.message


def test_words_without_an_aligner_or_a_place_in_the_queue(run: TrainedRun, serving: Callable) -> None:
    with serving(make_app(run)) as address, pytest.raises(openai.NotFoundError, match="with --aligner"):
        align(client_of(address), heard(wav(1)))
    with serving(make_app(run, ServerLimits(waiting=1), DemoAligner())) as address:
        for _ in range(2):  # a failure gives its place in the queue back
            with pytest.raises(openai.BadRequestError, match="no word was recognised"):
                align(client_of(address), heard(as_file(np.zeros(16_000))))
    with serving(make_app(run, ServerLimits(waiting=0), DemoAligner())) as address, pytest.raises(openai.RateLimitError):
        align(client_of(address), heard(wav(1)))


TEXT = {"type": "text", "text": "repeat"}
WORD = {"word": "one", "start": 0.5, "end": 1.0, "read": True}


@pytest.mark.parametrize(
    ("messages", "status", "reason"),
    [
        ([], 400, "must be user, assistant"),
        ([{"role": "assistant", "content": "hello"}], 400, "must be user, assistant"),
        ([user("one"), {"role": "system", "content": "be brief"}, user("repeat")], 400, "must come before all others"),
        ([user("")], 400, "the last message is empty"),
        ([user(heard(b"no sound at all"), TEXT)], 400, "part 1: not readable as audio"),
        (
            [user({"type": "input_audio", "input_audio": {"data": "~~~", "format": "wav"}}, TEXT)],
            400,
            "part 1: input_audio.data",
        ),
        ([user({"type": "input_audio"}, TEXT)], 400, "part 1: an input_audio part needs"),
        ([user(heard(wav(6)), TEXT)], 400, "part 1: too long: 6.0 s, more than 5 s"),
        ([user({"type": "image_url", "image_url": {"url": "x"}})], 400, "messages.0.content"),
        ([user(heard(wav(40)), TEXT)], 413, "a request may have 1 MB"),
        ([user(heard(wav(1), words=[WORD, {**WORD, "start": 0.1}]), TEXT)], 400, "each must start at or after"),
        ([user(heard(wav(1), words=[{**WORD, "word": "one two"}]), TEXT)], 400, "words.0.word"),
        ([user(heard(wav(1), words=[{**WORD, "start": -1}]), TEXT)], 400, "words.0.start"),
        ([user(heard(wav(1), words=[WORD] * 1001), TEXT)], 400, "at most 1000 items"),
        ([user(TEXT, heard(wav(1), words=[WORD]), TEXT)], 400, "must be the only speech"),
        ([user(heard(wav(1), words=[WORD])), {"role": "assistant", "content": "two"}, user("repeat")], 400, "the only speech"),
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
