"""What a client may cost: bytes, memory, places in the queue, the model's time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from http_call import call, post
from use.serve.test_server import ask, client_of, user

from mtbi.errors import UserError
from mtbi.model import generate as generating
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve import middleware
from mtbi.use.serve.limits import ServerLimits, read_api_key
from mtbi.use.serve.server import make_app

QUESTION = user("three five seven reverse the digits")  # answered "seven five three"
BODY = json.dumps({"messages": [QUESTION]})


def raw(address: str, *sent: bytes) -> str:
    """What the server says to these bytes, until it closes or is silent."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        for piece in sent:
            connection.sendall(piece)
        answer = b""
        while b"}" not in answer and (got := connection.recv(65536)):
            answer += got
        return answer.decode()


def test_a_body_in_chunks_is_read_and_counted(address: str) -> None:
    pieces = [BODY[:20].encode(), BODY[20:].encode()]
    assert post(address, iter(pieces)).json["choices"][0]["message"]["content"] == "seven five three"
    answer = post(address, iter([b"x" * 100_000] * 15))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert "a request may have 1 MB" in answer.error["message"]


@pytest.mark.parametrize("length", ["10", "99999999999"])
def test_a_length_that_is_not_true_changes_nothing(address: str, length: str) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
    answer = raw(address, head.encode(), *[chunk] * 15, b"0\r\n\r\n")
    assert answer.startswith(("HTTP/1.1 413", "HTTP/1.1 400"))


def test_a_huge_length_is_refused_before_the_body_comes(address: str) -> None:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000000\r\n\r\n"
    begun = time.monotonic()
    assert "this one has 2000.0 MB" in raw(address, head.encode())
    assert time.monotonic() - begun < middleware.DRAIN_SECONDS + 3


def test_what_is_no_recording_may_be_a_tenth(address: str) -> None:
    for body, reason in (
        ({"messages": [user("x" * 150_000)]}, "0.1 MB besides its recordings, this one has 0.2 MB"),
        ({"messages": [{"role": "user", "content": "x", "data": "é" * 60_000}]}, "besides its recordings"),
        ({"messages": [user({"type": "text", "text": '"data":"' + "x" * 150_000})]}, "besides its recordings"),
    ):
        answer = post(address, body)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large"), answer.text
        assert reason in answer.error["message"]
    answer = post(address, b'{"messages": [' + b"[]," * 30_000 + b"[]]}")
    assert "50000 brackets and commas" in answer.error["message"]


@pytest.fixture
def small(run: TrainedRun, serving: Callable) -> Iterator[str]:
    """A server for one request at a time, with long answers."""
    with serving(make_app(run, ServerLimits(waiting=1, new_tokens=400))) as address:
        yield address


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Answers that do not end by themselves; counts the tokens that were generated."""
    count = 0
    complete = generating.complete

    def slow(model: SpeechLLMModule, embeddings: Any, mask: Any, most: int, end_id: int, streamer: Any, decoding: Any) -> Any:
        put = streamer.put

        def counted(value: Any) -> None:
            nonlocal count
            count += value.numel()
            time.sleep(0.02)
            put(value)

        streamer.put = counted
        streamer.end_ids = []
        return complete(model, embeddings, mask, most, -1, streamer, decoding)

    monkeypatch.setattr(generating, "all_end_ids", lambda *_: [-1])
    monkeypatch.setattr(generating, "complete", slow)
    return lambda: count


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_stops_the_answer(small: str, endless: Callable[[], int], stream: bool) -> None:
    parts = urlsplit(small)
    body = json.dumps({"messages": [QUESTION], "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(head + body)
        while not endless():
            time.sleep(0.01)
        assert post(small, BODY).status == 429  # the one place is taken
    time.sleep(0.3)
    left = endless()
    assert left < 100
    time.sleep(0.3)
    assert endless() == left  # nothing more is generated
    answer = post(small, {"messages": [QUESTION], "max_tokens": 2})
    assert answer.status == 200  # the place came back


def test_who_leaves_while_it_waits_gives_its_place_back(run: TrainedRun, serving: Callable, endless: Callable[[], int]) -> None:
    with serving(make_app(run, ServerLimits(waiting=2, new_tokens=400))) as address:
        parts = urlsplit(address)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as first:
            first.sendall(head)
            while not endless():
                time.sleep(0.01)
            with socket.create_connection((parts.hostname or "", parts.port or 0)) as second:
                second.sendall(head)
                time.sleep(0.2)
                full = post(address, BODY)
                assert (full.status, full.error["code"]) == (429, "rate_limit_exceeded")
                assert 1 <= int(full.headers["Retry-After"]) <= 60
            time.sleep(0.2)
            third = threading.Thread(target=post, args=(address, {"messages": [QUESTION], "max_tokens": 1}))
            third.start()
            time.sleep(0.2)
            assert post(address, BODY).status == 429  # the third waits where the second did
        third.join(20)
        assert not third.is_alive()


def test_an_upload_that_does_not_end_is_given_up(run: TrainedRun, serving: Callable) -> None:
    with serving(make_app(run, ServerLimits(waiting=1, upload_seconds=0.3))) as address:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        assert "408" in raw(address, head)[:20]
        assert ask(client_of(address), QUESTION) == "seven five three"


def test_other_methods_need_no_length(address: str) -> None:
    assert call("GET", address, "/v1/models").status == 200
    assert call("POST", address, "/v1/models", b"").status == 405


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTBI_API_KEY", raising=False)
    assert read_api_key(None) == ""
    monkeypatch.setenv("MTBI_API_KEY", "of-the-environment")
    assert read_api_key(None) == "of-the-environment"
    (tmp_path / "key").write_text("of-a-file\n")
    assert read_api_key(tmp_path / "key") == "of-a-file"
    for wrong in ("", " \n", "two words", "größe", "two\nlines"):
        (tmp_path / "key").write_text(wrong)
        with pytest.raises(UserError, match="--api-key-file") as caught:
            read_api_key(tmp_path / "key")
        assert not wrong.strip() or wrong not in str(caught.value)


def test_the_public_client_tries_again_when_told(run: TrainedRun, serving: Callable) -> None:
    with serving(make_app(run, ServerLimits(waiting=0))) as address, pytest.raises(openai.RateLimitError) as caught:
        ask(client_of(address), QUESTION)
    assert caught.value.response.headers["retry-after"] == "1"
