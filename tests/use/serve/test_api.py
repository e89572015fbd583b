"""The public API's parameters, messages and errors, as its clients use them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import torch
from http_call import call, post
from use.serve.test_server import ask, client_of, heard, user, wav

from mtbi.llm.chat_format import ChatFormat
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.server import ServerLimits, make_app

QUESTION = user("three five seven reverse the digits")  # answered "seven five three"
REPEAT = {"type": "text", "text": "repeat"}


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return client_of(address)


def chunks(client: openai.OpenAI, *messages: dict, **options: Any) -> list[Any]:
    return list(client.chat.completions.create(model="demo", messages=list(messages), stream=True, **options))  # type: ignore[call-overload]


def sent(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data}}


def text_of(stream: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a_stream_ends_for_the_reason_for_which_it_ended(client: openai.OpenAI) -> None:
    assert [chunk.choices[0].finish_reason for chunk in chunks(client, QUESTION)][-1] == "stop"
    cut = chunks(client, QUESTION, max_tokens=1)
    assert text_of(cut) == "seven"
    assert cut[-1].choices[0].finish_reason == "length"
    assert cut[0].choices[0].delta.role == "assistant"


def test_tokens_are_counted(client: openai.OpenAI, run: TrainedRun) -> None:
    answer = client.chat.completions.create(model="demo", messages=[QUESTION], max_tokens=1)  # type: ignore[list-item]
    chat = run.chat
    expected = len(chat.prefix_ids) + len(chat.text_ids(QUESTION["content"])) + len(chat.suffix_ids(""))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected, 1)
    stream = chunks(client, QUESTION, stream_options={"include_usage": True})
    assert [chunk.usage for chunk in stream[:-1]] == [None] * (len(stream) - 1)
    assert not stream[-1].choices
    assert (stream[-1].usage.prompt_tokens, stream[-1].usage.completion_tokens) == (expected, 3)  # without the end token
    assert all(chunk.usage is None for chunk in chunks(client, QUESTION))


def test_adapter_frames_count_as_tokens_of_the_prompt(client: openai.OpenAI, run: TrainedRun) -> None:
    asked: Any = [user(heard(wav(1)), REPEAT)]
    frames = len(run.model.encode_waveform(np.zeros(16_000, np.float32)))
    usage = client.chat.completions.create(model="demo", messages=asked).usage
    assert usage is not None
    assert usage.prompt_tokens == len(run.chat.prefix_ids) + frames + len(run.chat.suffix_ids("repeat"))
    words = [{"word": "one", "start": 0, "end": 1, "read": True}]
    asked = [user(heard(wav(1), words=words), REPEAT)]
    usage = client.chat.completions.create(model="demo", messages=asked).usage
    assert usage is not None
    assert usage.prompt_tokens == len(run.chat.dialogue_ids("one", "repeat"))


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("five", "seven"),
        (["five", "seven"], ""),
        (" ", "seven"),
        ("x", "seven five three"),
        ("seven five three", ""),
        ([], None),
    ],
)
def test_stop_texts_end_the_answer_and_no_part_of_them_is_sent(client: openai.OpenAI, stop: Any, expected: str | None) -> None:
    expected = "seven five three" if expected is None else expected
    answer = client.chat.completions.create(model="demo", messages=[QUESTION], stop=stop)  # type: ignore[list-item]
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    stream = chunks(client, QUESTION, stop=stop)
    assert text_of(stream) == expected
    assert stream[-1].choices[0].finish_reason == "stop"


def test_answers_are_drawn_where_the_client_asks_for_it(client: openai.OpenAI) -> None:
    drawn = [ask(client, user(heard(wav(1)), REPEAT), temperature=2, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert text_of(chunks(client, user(heard(wav(1)), REPEAT), temperature=2, seed=1)) == drawn[0]
    state = torch.random.get_rng_state()
    greedy = {ask(client, user(heard(wav(1)), REPEAT), **options) for options in ({}, {"temperature": 0}, {"top_p": 1})}
    assert greedy == {ask(client, user(heard(wav(1)), REPEAT), temperature=2, top_p=1e-9)}  # only the most probable token
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"logprobs": True},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"logit_bias": {"5": 10}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"skip_special_tokens": False},
        {"add_generation_prompt": False},
        {"n": 0},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text", "audio"]},
        {"min_p": 0.1},
    ],
)
def test_what_would_change_the_answer_and_cannot_is_an_error(address: str, options: dict) -> None:
    answer = post(address, {"messages": [QUESTION], **options})
    assert answer.status == 400
    assert answer.error["param"] == next(iter(options))
    assert "not supported" in answer.error["message"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_completion_tokens": -5}, "max_completion_tokens: Input should be greater"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "one text or up to four"),
        ({"stop": ""}, "none of them empty"),
        ({"seed": 2**64}, "seed: Input should be less than"),
    ],
)
def test_values_that_the_api_does_not_allow(address: str, options: dict, reason: str) -> None:
    answer = post(address, {"messages": [QUESTION], **options})
    assert answer.status == 400
    assert reason in answer.error["message"]


def test_what_front_ends_send_is_accepted(address: str) -> None:
    """Values that ask for nothing, and nulls."""
    names = (
        "max_tokens",
        "stream",
        "stop",
        "temperature",
        "top_p",
        "seed",
        "tools",
        "response_format",
        "stream_options",
        "model",
    )
    neutral = {
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "auto",
        "skip_special_tokens": True,
        "spaces_between_special_tokens": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "user": "me",
        "store": True,
    }
    for body in (dict.fromkeys(names), neutral):
        answer = post(address, {"messages": [{**QUESTION, "name": "me"}], **body})
        assert answer.json["choices"][0]["message"]["content"] == "seven five three", answer.text


def test_the_prompt_and_the_answer_fit_the_context(client: openai.OpenAI, run: TrainedRun, serving: Callable) -> None:
    assert run.model.llm.config.max_position_embeddings == 512
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(80_000), 16_000, format="FLAC")
    with serving(make_app(run)) as address:
        for content in ("five " * 600, "five " * 508, [heard(silence.getvalue())] * 20 + [REPEAT]):
            with pytest.raises(openai.BadRequestError, match="maximum context length is 512") as caught:
                ask(client_of(address), {"role": "user", "content": content})
            assert caught.value.code == "context_length_exceeded"
    room = 512 - len(run.chat.prefix_ids) - len(run.chat.suffix_ids(""))
    answer = client.chat.completions.create(model="demo", messages=[user("five " * (room - 2))])  # type: ignore[list-item]
    assert answer.usage is not None
    assert answer.usage.total_tokens <= 512
    assert answer.usage.completion_tokens <= 2


def test_system_messages(client: openai.OpenAI, run: TrainedRun) -> None:
    wave = soundfile.read(io.BytesIO(wav(1)), dtype="float32")[0]
    own = replace(run, chat=ChatFormat(run.chat.tokenizer, "five five"))
    expected = Conversation(own, 24).say([wave], "repeat")
    for role in ("system", "developer"):
        assert ask(client, {"role": role, "content": " "}, QUESTION) == "seven five three"  # nothing was said
        given: Any = [{"role": role, "content": "five five"}, user(heard(wav(1)), REPEAT)]
        answer = client.chat.completions.create(model="demo", messages=given)
        assert answer.choices[0].message.content == expected
        assert answer.usage is not None
        frames = len(run.model.encode_waveform(wave))
        assert answer.usage.prompt_tokens == len(own.chat.prefix_ids) + frames + len(own.chat.suffix_ids("repeat"))


def test_a_template_that_drops_or_refuses_the_system_message(run: TrainedRun, serving: Callable) -> None:
    messages = [{"role": "system", "content": "be brief"}, QUESTION]
    plain = "<s>{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + plain
    kept = run.chat.tokenizer.chat_template
    try:
        for template in (plain, refusing):
            run.chat.tokenizer.chat_template = template
            with serving(make_app(run)) as address, pytest.raises(openai.BadRequestError, match="takes no system message"):
                ask(client_of(address), *messages)
    finally:
        run.chat.tokenizer.chat_template = kept


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "assistant", "content": "hello"}, QUESTION], "leave out the greeting"),
        ([QUESTION, {"role": "assistant", "content": "one"}], "end with the user's"),
        ([{"role": "user", "content": None}], "messages.0.content: null"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.0.role: 'tool'"),
        ([QUESTION, {"role": "assistant", "content": None, "tool_calls": [{}]}, QUESTION], "messages.1.tool_calls"),
        ([QUESTION, {"role": "assistant", "content": [heard(wav(1))]}, QUESTION], "messages.1: only messages of the user"),
        ([{"role": "system", "content": [heard(wav(1))]}, QUESTION], "messages.0: only messages of the user"),
        ([user({"type": "audio_url", "audio_url": {"url": "https://x.org/a.wav"}}, REPEAT)], "nothing is fetched"),
        ([user({"type": "audio", "audio_url": "a.wav"}, REPEAT)], "messages.0.content"),
        ([user({"type": "input_audio", "input_audio": {"data": "größe"}}, REPEAT)], "part 1: input_audio.data is not base64"),
        ([user({"type": "input_audio", "input_audio": {"data": "AAA"}}, REPEAT)], "part 1: input_audio.data is not base64"),
        (
            [user({"type": "input_audio", "input_audio": {"data": "AA==AAAA"}}, REPEAT)],
            "part 1: input_audio.data is not base64",
        ),
        ([user({"type": "input_audio", "input_audio": {"data": "data:audio/wav,AAAA"}}, REPEAT)], "data:audio/wav;base64,"),
        ([user({"type": "input_audio", "input_audio": {"data": ""}}, REPEAT)], "part 1: empty file"),
    ],
)
def test_messages_that_cannot_be_answered(address: str, messages: list, reason: str) -> None:
    answer = post(address, {"messages": messages})
    assert answer.status == 400, answer.text
    assert reason in answer.error["message"]


def test_messages_that_clients_send(client: openai.OpenAI) -> None:
    echoed = {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "annotations": []}
    assert ask(client, QUESTION, echoed, QUESTION)
    first, second = user("three five seven"), user("reverse the digits")
    assert ask(client, first, second) == "seven five three"  # a user's messages in a row are one
    assert ask(client, user(heard(wav(1))), user(REPEAT)) == ask(client, user(heard(wav(1)), REPEAT))


def test_ways_to_write_base64(address: str, client: openai.OpenAI) -> None:
    data = base64.b64encode(wav(1)).decode()
    expected = ask(client, user(heard(wav(1)), REPEAT))
    lines = "\r\n".join(data[start : start + 76] for start in range(0, len(data), 76))
    for written in (f"data:audio/wav;base64,{data}", lines, f"{data}\n"):
        for part in (
            sent(written),
            {"type": "audio_url", "audio_url": {"url": written}},
        ):
            answer = post(address, json.dumps({"messages": [user(part, REPEAT)]}).replace("/", "\\/"))  # as PHP writes it
            assert answer.json["choices"][0]["message"]["content"] == expected, answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b'{"messages": [{"role": "user", "content": "x \\ud83d"}]}',
        b'{"messages": ' + b"[" * 5000,
        b'{"messages": ' + b"9" * 5000 + b"}",
        b'{"messages": [' + b"{}," * 1500 + b"{}]}",
        '{"messages": [{"role": "user", "content": ""}], "é": 1e999}',
    ],
)
def test_a_body_that_is_none_is_told_so(address: str, body: bytes | str) -> None:
    answer = post(address, body)
    assert answer.status == 400, answer.text
    assert answer.error["message"]
    assert len(answer.text) < 1000


def test_models_health_and_what_is_not_there(client: openai.OpenAI, address: str) -> None:
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        client.models.retrieve("other/model")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist"):
        client.chat.completions.create(model="gpt-4o", messages=[QUESTION])  # type: ignore[list-item]
    assert call("GET", address, "/health").json == {"status": "ok"}
    for answer, status in ((call("GET", address, "/nothing"), 404), (call("GET", address, "/v1/chat/completions"), 405)):
        assert answer.status == status
        assert answer.error["message"]


def test_a_failure_is_an_error_whole_or_streamed(
    run: TrainedRun, serving: Callable, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(make_app(run, ServerLimits(waiting=1))) as address:
        client = client_of(address)

        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with monkeypatch.context() as broken:
            broken.setattr(SpeechLLMModule, "embed", fail)
            with pytest.raises(openai.InternalServerError, match="its log says why"):
                ask(client, QUESTION)
            with pytest.raises(openai.APIError, match="its log says why"):
                chunks(client, QUESTION)
            answer = post(address, {"messages": [QUESTION], "stream": True})
            assert "[DONE]" not in answer.text
            assert '"finish_reason": "stop"' not in answer.text
        assert "CUDA out of memory" in capfd.readouterr().err
        assert ask(client, QUESTION) == "seven five three"  # its place came back


def test_browsers_of_allowed_sites(run: TrainedRun, serving: Callable, address: str) -> None:
    ask_first = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in call("OPTIONS", address, "/v1/chat/completions", headers=ask_first).headers
    app = make_app(run, ServerLimits(waiting=0), api_key="secret", origins=["http://localhost:3000"])
    with serving(app) as own:
        headers = {**ask_first, "Access-Control-Request-Headers": "authorization,content-type"}
        allowed = call("OPTIONS", own, "/v1/chat/completions", headers=headers)
        assert allowed.status == 200
        assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        other = call("OPTIONS", own, "/v1/chat/completions", headers={**headers, "Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = post(own, {"messages": [QUESTION]}, headers={"Origin": "http://localhost:3000"})
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "http://localhost:3000")


def test_an_api_key_is_asked_for(run: TrainedRun, serving: Callable) -> None:
    with serving(make_app(run, api_key="secret")) as address:
        for key in ("none", "secretx", "größe".encode()):
            value = key if isinstance(key, bytes) else key.encode()
            answer = post(address, {"messages": [QUESTION]}, headers={"authorization": b"Bearer " + value})
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert "secret" not in answer.error["message"]
        assert call("GET", address, "/v1/models").status == 401
        assert call("GET", address, "/health").status == call("GET", address).status == 200
        known = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        assert ask(known, QUESTION) == "seven five three"
