"""The OpenAI chat-completions API with speech in it, over HTTP.

A user message is text, or parts of text and `input_audio` as in the public API. The text after the last recording is the
prompt; what stands before belongs to what was said. Answers are greedy. Mistakes are answered with 4xx and a reason.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from transformers import TextIteratorStreamer

from mtbi.chat import Conversation
from mtbi.data import audio
from mtbi.errors import UserError
from mtbi.trained import TrainedRun

PAGE = Path(__file__).with_name("page.html")


class InputAudio(BaseModel):
    """A recording in a message."""

    data: str  #: base64
    format: str = "wav"  #: told by the file itself, so not read


class Part(BaseModel):
    """A piece of a message."""

    type: Literal["text", "input_audio"]
    text: str = ""
    input_audio: InputAudio | None = None


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class ChatRequest(BaseModel):
    """What is understood of the public API; sampling options are accepted and have no effect."""

    model: str = ""
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False


class Limits(BaseModel):
    """What one server takes on."""

    megabytes: float = 25.0  #: of a request
    waiting: int = 8  #: requests at once, the one being answered included
    new_tokens: int = 512  #: longest answer


def refuse(status: int, reason: str) -> HTTPException:
    """An error that the client reads."""
    return HTTPException(status, detail=reason)


def pieces(message: Message, fit: Callable[[np.ndarray], np.ndarray]) -> tuple[list[str | np.ndarray], str]:
    """What is said and the prompt about it. Raises HTTPException 400 for an unusable recording."""
    parts = [Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    found: list[str | np.ndarray] = []
    for number, part in enumerate(parts, start=1):
        if part.type == "text":
            found.append(part.text)
            continue
        if part.input_audio is None:
            raise refuse(400, f"part {number}: an input_audio part needs `input_audio` with base64 `data`")
        try:
            found.append(fit(audio.read(base64.b64decode(part.input_audio.data, validate=True))))
        except binascii.Error as error:
            raise refuse(400, f"part {number}: input_audio.data is not base64: {error}") from error
        except UserError as error:
            raise refuse(400, f"part {number}: {error}") from error
    last = max((place for place, piece in enumerate(found) if isinstance(piece, np.ndarray)), default=-1)
    prompt = " ".join(piece for piece in found[last + 1 :] if isinstance(piece, str))
    return found[: last + 1], prompt


class Answerer:
    """One model, one request at a time; a few may wait."""

    def __init__(self, run: TrainedRun, limits: Limits) -> None:
        self.run, self.limits = run, limits
        self.name = run.recipe.name
        self._turn = threading.Lock()
        self._room = threading.BoundedSemaphore(limits.waiting)

    def prepare(self, request: ChatRequest) -> tuple[Conversation, list[str | np.ndarray], str]:
        """The conversation so far, and the last message. Raises HTTPException for what cannot be answered."""
        wanted = request.max_completion_tokens or request.max_tokens or self.limits.new_tokens
        talk = Conversation(self.run, max(1, min(wanted, self.limits.new_tokens)))
        messages = [message for message in request.messages if message.role != "system"]
        if len(messages) < len(request.messages):
            raise refuse(400, "the system prompt is part of the training (behaviour.system_prompt) and cannot be changed here")
        roles = [message.role for message in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise refuse(400, "messages must be user, assistant, user, … and end with the user's")
        for question, answer in zip(messages[:-1:2], messages[1::2], strict=True):
            talk.recall(*pieces(question, talk.fit), pieces(answer, talk.fit)[1])
        said, prompt = pieces(messages[-1], talk.fit)
        if not said and not prompt.strip():
            raise refuse(400, "the last message is empty")
        return talk, said, prompt

    def enter(self) -> None:
        """Take a place in the queue. Raises HTTPException 429 where there is none."""
        if not self._room.acquire(blocking=False):
            raise refuse(429, f"{self.limits.waiting} requests are waiting already; try again in a moment")

    def answer(self, talk: Conversation, said: list[str | np.ndarray], prompt: str, streamer: Any = None) -> str:
        """Generate, and give the place in the queue back."""
        try:
            with self._turn:
                return talk.say(said, prompt, streamer)
        finally:
            self._room.release()
            if streamer:
                streamer.end()

    def stream(self, talk: Conversation, said: list[str | np.ndarray], prompt: str) -> Iterator[str]:
        """Pieces of the answer as they come."""
        streamer = TextIteratorStreamer(self.run.chat.tokenizer, skip_prompt=False, skip_special_tokens=True, timeout=600)
        worker = threading.Thread(target=self.answer, args=(talk, said, prompt, streamer), daemon=True)
        worker.start()
        yield from (text for text in streamer if text)


def chunk(identity: str, model: str, delta: dict[str, str], finish: str | None) -> str:
    """One server-sent event of a streamed answer."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    record = {
        "id": identity,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
    }
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n"


def make_app(run: TrainedRun, limits: Limits | None = None) -> FastAPI:
    """The server of one run."""
    limits = limits or Limits()
    answerer = Answerer(run, limits)
    app = FastAPI(title="mtbi", docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def limit_size(request: Request, call_next: Callable[[Request], Any]) -> Response:
        size = request.headers.get("content-length")
        if request.method == "POST" and (size is None or not size.isdigit()):
            return error_response(411, "the request's length must be told (Content-Length)")
        if size and int(size) > limits.megabytes * 1e6:
            return error_response(413, f"a request may have {limits.megabytes:g} MB, this one has {int(size) / 1e6:.1f} MB")
        return await call_next(request)

    @app.exception_handler(HTTPException)
    async def told(_request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return error_response(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/v1/models")
    def models() -> dict:
        return {"object": "list", "data": [{"id": answerer.name, "object": "model", "owned_by": "mtbi"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: ChatRequest) -> Response:
        talk, said, prompt = await run_in_threadpool(answerer.prepare, request)
        answerer.enter()
        identity = f"chatcmpl-{uuid.uuid4().hex[:24]}"
        if request.stream:

            def events() -> Iterator[str]:
                yield chunk(identity, answerer.name, {"role": "assistant", "content": ""}, None)
                for text in answerer.stream(talk, said, prompt):
                    yield chunk(identity, answerer.name, {"content": text}, None)
                yield chunk(identity, answerer.name, {}, "stop")
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")
        text = await run_in_threadpool(answerer.answer, talk, said, prompt)
        answer_tokens = len(talk.parts[-1])
        usage = {"prompt_tokens": 0, "completion_tokens": answer_tokens, "total_tokens": answer_tokens}
        finish = "length" if answer_tokens > talk.max_new_tokens else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        record = {"id": identity, "object": "chat.completion", "created": int(time.time()), "model": answerer.name}
        return JSONResponse({**record, "choices": [choice], "usage": usage})

    return app


def error_response(status: int, reason: str) -> JSONResponse:
    """An error in the public API's form."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return JSONResponse({"error": {"message": reason, "type": kind, "param": None, "code": None}}, status_code=status)
