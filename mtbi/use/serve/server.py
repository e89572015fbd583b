"""The OpenAI chat-completions API with speech in it, over HTTP, and word times for the page.

A user message is text, or a list of `text` and `input_audio` parts as in the public API. `mtbi.use.turn.split_prompt` decides
which text is the prompt. One field is an addition to the public API: `input_audio.words` are the words that `POST /v1/align`
returns, each with `read`, which is true if the model is to get the word as text (`mtbi.use.serve.mix`). Errors have the API's
form and a 4xx status. docs/serve.md lists what is supported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from mtbi.corpus.aligner import Aligner
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.api_types import ApiError, ChatRequest, Completion, event, failed, usage
from mtbi.use.serve.limits import ServerLimits
from mtbi.use.serve.middleware import ApiKeyMiddleware, RequestLimitMiddleware, upload
from mtbi.use.serve.queue import RequestQueue
from mtbi.use.serve.replies import Reply, ReplyBuilder, unknown_model

PAGE = Path(__file__).with_name("page.html")


class EventStream(Response):
    """Server-sent events. `held` is released at their end, also after an error and if no event was sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], held: AsyncExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.events, self.held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        async with self.held:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for text in self.events:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def generated(queue: RequestQueue, reply: Reply, texts: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    """The pieces of an answer while it is generated. Raises the exceptions of generating."""
    job = asyncio.ensure_future(queue.work(reply.generate, reply.writer.abandoned.set))
    job.add_done_callback(lambda _: texts.put_nowait(None))
    try:
        while (text := await texts.get()) is not None:
            yield text
        await job
    finally:
        job.cancel()  # has no effect on a finished job
        with suppress(BaseException):
            await job


async def events(completion: Completion, texts: AsyncIterator[str], reply: Reply) -> AsyncIterator[str]:
    """The events of a streamed answer. If generating fails, the last one is an error, without `finish_reason` and `[DONE]`."""
    yield completion.chunk({"role": "assistant", "content": ""})
    try:
        async for text in texts:
            yield completion.chunk({"content": text})
    except Exception:
        yield event(failed("an answer failed while it was streamed").body)
        return
    yield completion.chunk({}, reply.writer.finish)
    if completion.with_usage:
        yield completion.usage_chunk(usage(reply.positions, len(reply.writer.tokens)))
    yield "data: [DONE]\n\n"


class Api:
    """The routes that use the model."""

    def __init__(self, run: TrainedRun, limits: ServerLimits, aligner: Aligner | None) -> None:
        self.limits, self.aligner = limits, aligner
        self.replies, self.queue = ReplyBuilder(run, limits), RequestQueue(limits.waiting)
        self.model = {"id": self.replies.name, "object": "model", "created": 0, "owned_by": "mtbi"}

    async def complete(self, request: Request) -> Response:
        """Answer a chat request, in one piece or streamed."""
        loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def emit(text: str) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        async with AsyncExitStack() as held:
            held.enter_context(self.queue.reserve())
            file = await held.enter_async_context(upload(request, self.limits.upload_seconds))
            await held.enter_async_context(self.queue.turn())
            chat_request, reply = await self.queue.work(lambda: self.replies.prepare(file, emit))
            completion = Completion(self.replies.name, wants_usage(chat_request))
            if chat_request.stream:
                return EventStream(events(completion, generated(self.queue, reply, texts), reply), held.pop_all())
            await self.queue.work(reply.generate, reply.writer.abandoned.set)
            writer = reply.writer
            return JSONResponse(completion.whole(writer.text, writer.finish, usage(reply.positions, len(writer.tokens))))

    async def align(self, request: Request) -> JSONResponse:
        """Answer with the times of the words in a recording."""
        if (aligner := self.aligner) is None:
            reason = "no word times: start `mtbi serve` with --aligner and the name of a Whisper or CTC model"
            raise ApiError(404, reason)
        with self.queue.reserve():
            async with upload(request, self.limits.upload_seconds) as file, self.queue.turn():
                return JSONResponse(await self.queue.work(lambda: self.replies.align(aligner, file)))

    def find_model(self, identity: str) -> dict:
        """The model of that name. Raises ApiError 404 for another than the one that is served."""
        if identity != self.model["id"]:
            raise unknown_model(identity)
        return self.model


def wants_usage(request: ChatRequest) -> bool:
    """Whether the client asks for token counts at the end of a stream."""
    return bool(request.stream_options and request.stream_options.include_usage)


def make_app(
    run: TrainedRun,
    limits: ServerLimits | None = None,
    aligner: Aligner | None = None,
    api_key: str = "",
    origins: Sequence[str] = (),
) -> FastAPI:
    """The server of one run. Without an aligner it cannot answer `POST /v1/align`.

    With an `api_key`, requests below `/v1` must send it. `origins` are web sites whose pages may use the API from a browser.
    """
    limits = limits or ServerLimits()
    api = Api(run, limits, aligner)
    app = FastAPI(title="mtbi", docs_url=None, redoc_url=None, openapi_url=None)
    # The middleware added last is the outermost: its headers are also on the errors of the others.
    app.add_middleware(RequestLimitMiddleware, limits=limits)
    if api_key:
        app.add_middleware(ApiKeyMiddleware, key=api_key)
    if origins:
        methods, shown = ["GET", "POST"], ["Retry-After"]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=shown
        )
    app.add_exception_handler(ApiError, respond)
    app.add_exception_handler(HTTPException, respond)
    app.get("/")(lambda: FileResponse(PAGE))
    app.get("/health")(lambda: {"status": "ok"})
    app.get("/v1/models")(lambda: {"object": "list", "data": [api.model]})
    app.get("/v1/models/{identity:path}")(api.find_model)
    app.post("/v1/chat/completions")(api.complete)
    app.post("/v1/align")(api.align)
    return app


async def respond(_request: Request, error: Exception) -> Response:
    """An error in the API's form."""
    if isinstance(error, HTTPException):  # no such path, another method
        error = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    assert isinstance(error, ApiError)
    return error.response()
