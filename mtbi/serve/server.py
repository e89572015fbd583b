"""The OpenAI chat-completions API with speech in it, over HTTP, and word times for the page.

A user message is text, or parts of text and `input_audio` as in the public API. The text after the last recording is the
prompt, or where there is none the text before the first one; other text is read as if it were heard. Of our own:
`input_audio.words`, as `POST /v1/align` gives them, each with `read`: true where the model shall get the word as text
(`mtbi.serve.mix`). Answers are greedy. Mistakes are answered with 4xx and a reason.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from transformers import TextIteratorStreamer

from mtbi.chat import Conversation
from mtbi.data import audio
from mtbi.data.align import CtcAligner
from mtbi.errors import UserError
from mtbi.serve.mix import Mix, Mixer, Word, align_words
from mtbi.trained import TrainedRun
from mtbi.turn import split_prompt

PAGE = Path(__file__).with_name("page.html")


class InputAudio(BaseModel):
    """A recording in a message."""

    data: str  #: base64
    format: str = "wav"  #: told by the file itself, so not read
    words: list[Word] = Field([], max_length=1000)  #: where some are to be read: all words that it holds


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


class AlignRequest(BaseModel):
    """A recording whose words are to be found in time."""

    input_audio: InputAudio
    transcript: str = Field("", max_length=10_000)  #: empty: what the recogniser hears


class Limits(BaseModel):
    """What one server takes on."""

    megabytes: float = 25.0  #: of a request
    waiting: int = 8  #: requests at once, the one being answered included
    new_tokens: int = 512  #: longest answer


def refuse(status: int, reason: str) -> HTTPException:
    """An error that the client reads."""
    return HTTPException(status, detail=reason)


Reply = Callable[[Any], str]  #: generates an answer; gets a streamer or None


def pieces(message: Message, listen: Callable[[InputAudio, str], np.ndarray]) -> tuple[list[str | np.ndarray], str]:
    """What is said and the prompt about it. Raises HTTPException 400 for an unusable recording."""
    found: list[str | np.ndarray] = []
    for number, part in enumerate(parts_of(message), start=1):
        if part.type == "text":
            found.append(part.text)
        elif part.input_audio is None:
            raise refuse(400, f"part {number}: an input_audio part needs `input_audio` with base64 `data`")
        else:
            found.append(listen(part.input_audio, f"part {number}"))
    return split_prompt(found)


def parts_of(message: Message) -> list[Part]:
    """The pieces of a message."""
    return [Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content


class Answerer:
    """One model, one request at a time; a few may wait."""

    def __init__(self, run: TrainedRun, limits: Limits) -> None:
        self.run, self.limits = run, limits
        self.mixer = Mixer(run)
        self.name = run.recipe.name
        self._turn = threading.Lock()
        self._room = threading.BoundedSemaphore(limits.waiting)

    def listen(self, recording: InputAudio, where: str) -> np.ndarray:
        """A recording as `(samples,)` at 16 kHz; not decoded if too long. Raises HTTPException 400 about `where`."""
        try:
            data = base64.b64decode(recording.data, validate=True)
            return audio.standardise(*audio.load(data, self.run.recipe.plan.max_audio_seconds))
        except binascii.Error as error:
            raise refuse(400, f"{where}: input_audio.data is not base64: {error}") from error
        except UserError as error:
            raise refuse(400, f"{where}: {error}") from error

    def prepare(self, request: ChatRequest) -> tuple[Conversation, Reply]:
        """The conversation so far, and what answers its last message. Raises HTTPException for what cannot be answered."""
        wanted = request.max_completion_tokens or request.max_tokens or self.limits.new_tokens
        talk = Conversation(self.run, max(1, min(wanted, self.limits.new_tokens)))
        messages = [message for message in request.messages if message.role != "system"]
        if len(messages) < len(request.messages):
            raise refuse(400, "the system prompt is part of the training (behaviour.system_prompt) and cannot be changed here")
        roles = [message.role for message in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise refuse(400, "messages must be user, assistant, user, … and end with the user's")
        for question, answer in zip(messages[:-1:2], messages[1::2], strict=True):
            talk.recall(*pieces(question, self.listen), pieces(answer, self.listen)[1])
        said, prompt = pieces(messages[-1], self.listen)
        if not said and not prompt.strip():
            raise refuse(400, "the last message is empty")
        sounds = [part.input_audio for message in messages for part in parts_of(message) if part.input_audio]
        if not any(sound.words for sound in sounds):
            return talk, partial(talk.say, said, prompt)
        if len(messages) > 1 or len(said) > 1:
            raise refuse(400, "words: a recording with words must be the only thing that is said, in the first message")
        [wave], [sound] = said, sounds
        assert isinstance(wave, np.ndarray)
        try:
            return talk, partial(self.mixer.answer, talk, Mix(wave, sound.words), prompt)
        except UserError as error:
            raise refuse(400, str(error)) from error

    def enter(self) -> None:
        """Take a place in the queue. Raises HTTPException 429 where there is none."""
        if not self._room.acquire(blocking=False):
            raise refuse(429, f"{self.limits.waiting} requests are waiting already; try again in a moment")

    def answer(self, reply: Reply, streamer: Any = None) -> str:
        """Generate, and give the place in the queue back."""
        try:
            with self._turn:
                return reply(streamer)
        finally:
            self._room.release()
            if streamer:
                streamer.end()

    def stream(self, reply: Reply) -> Iterator[str]:
        """Pieces of the answer as they come. Generates whether they are taken or not: the place in the queue comes back."""
        streamer = TextIteratorStreamer(self.run.chat.tokenizer, skip_prompt=False, skip_special_tokens=True, timeout=600)
        threading.Thread(target=self.answer, args=(reply, streamer), daemon=True).start()
        return (text for text in streamer if text)

    def align(self, aligner: CtcAligner, wave: np.ndarray, transcript: str) -> list[Word]:
        """Word times; gives the place in the queue back. Raises HTTPException 400 for what cannot be aligned."""
        try:
            with self._turn:
                return align_words(aligner, wave, transcript.strip())
        except UserError as error:
            raise refuse(400, str(error)) from error
        finally:
            self._room.release()


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


def make_app(run: TrainedRun, limits: Limits | None = None, aligner: CtcAligner | None = None) -> FastAPI:
    """The server of one run; without an aligner it knows no word times."""
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
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # content is text or parts: the nearest miss says most
        return error_response(400, f"{'.'.join(map(str, deepest['loc'][1:]))}: {deepest['msg']}")

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/v1/models")
    def models() -> dict:
        return {"object": "list", "data": [{"id": answerer.name, "object": "model", "owned_by": "mtbi"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: ChatRequest) -> Response:
        talk, reply = await run_in_threadpool(answerer.prepare, request)
        answerer.enter()
        identity = f"chatcmpl-{uuid.uuid4().hex[:24]}"
        if request.stream:
            texts = answerer.stream(reply)

            def events() -> Iterator[str]:
                yield chunk(identity, answerer.name, {"role": "assistant", "content": ""}, None)
                for text in texts:
                    yield chunk(identity, answerer.name, {"content": text}, None)
                yield chunk(identity, answerer.name, {}, "stop")
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")
        text = await run_in_threadpool(answerer.answer, reply)
        answer_tokens = len(talk.parts[-1])
        usage = {"prompt_tokens": 0, "completion_tokens": answer_tokens, "total_tokens": answer_tokens}
        finish = "length" if answer_tokens > talk.max_new_tokens else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        record = {"id": identity, "object": "chat.completion", "created": int(time.time()), "model": answerer.name}
        return JSONResponse({**record, "choices": [choice], "usage": usage})

    @app.post("/v1/align")
    async def align(request: AlignRequest) -> dict:
        if aligner is None:
            raise refuse(404, "no word times: start `mtbi serve` with --aligner and the name of a CTC model of transformers")
        wave = await run_in_threadpool(answerer.listen, request.input_audio, "input_audio")
        answerer.enter()
        words = await run_in_threadpool(answerer.align, aligner, wave, request.transcript)
        return {"duration": len(wave) / audio.SAMPLE_RATE, "words": [word.model_dump() for word in words]}

    return app


def error_response(status: int, reason: str) -> JSONResponse:
    """An error in the public API's form."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return JSONResponse({"error": {"message": reason, "type": kind, "param": None, "code": None}}, status_code=status)
