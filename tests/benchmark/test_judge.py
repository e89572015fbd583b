"""The judge against a real HTTP server that speaks as much of OpenAI's protocol as is needed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mtbi.benchmark.dialogues import Dialogue
from mtbi.benchmark.judge import Judge
from mtbi.errors import UserError
from mtbi.metrics import SPEECH, TEXT_LLM


class Handler(BaseHTTPRequestHandler):
    """Marks an answer 5 where it is the reference, 2 else, and has nothing to say about `strange`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][0]["content"]
        lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        mark = "Mark: 5" if lines["Answer to rate"] == lines["Reference answer"] else "2"
        mark = "I would rather not." if lines["Answer to rate"] == "strange" else mark
        message = {"role": "assistant", "content": mark}
        record = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"]}
        body = json.dumps({**record, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()
        authorised = self.headers["Authorization"] == "Bearer sk-right"
        self.send_response(200 if authorised else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def dialogue(heard: str) -> Dialogue:
    made = Dialogue("g", "u", "s", "summary", 0, "?", True, False, "one two", None)
    made.answers = {TEXT_LLM: "a list", SPEECH: heard}
    return made


def test_marks_become_shares(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    asked = [dialogue("a list"), dialogue("no idea"), dialogue("strange")]
    Judge(url, "any").judge(asked)
    assert [one.judged for one in asked] == [1.0, 0.25, None]


def test_a_refusal_is_told_without_the_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-secret")
    with pytest.raises(UserError, match="does not answer") as caught:
        Judge(url, "any").judge([dialogue("a list")])
    assert "sk-wrong-secret" not in str(caught.value)


def test_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        Judge("http://127.0.0.1:1/v1", "any")
