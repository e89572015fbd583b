"""The OpenAI chat-completions API with speech in it, over HTTP, and word times for the page.

A user message is text, or parts of text and `input_audio` as in the public API. The text after the last recording is the
prompt, or where there is none the text before the first one; other text is read as if it were heard. Of our own:
`input_audio.words`, as `POST /v1/align` gives them, each with `read`: true where the model shall get the word as text
(`mtbi.use.serve.mix`). Mistakes are answered with 4xx and a reason, always in the API's form. `docs/serve.md` says what is
supported.
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

from mtbi.corpus.align import CtcAligner
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.api_types import ApiError, ChatRequest, Completion, event, failed, usage
from mtbi.use.serve.limits import ApiKeyMiddleware, RequestLimitMiddleware, ServerLimits, upload
from mtbi.use.serve.queue import RequestQueue
from mtbi.use.serve.replies import Reply, ReplyBuilder, unknown_model

PAGE = Path(__file__).with_name("page.html")


class EventStream(Response):
    """Server-sent events; what was `held` for them is released whatever happens, also where they never began."""

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


async def written(queue: RequestQueue, reply: Reply, texts: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    """The pieces of an answer while it is generated. Raises what generating raises."""
    job = asyncio.ensure_future(queue.work(reply.generate, reply.writer.abandoned.set))
    job.add_done_callback(lambda _: texts.put_nowait(None))
    try:
        while (text := await texts.get()) is not None:
            yield text
        await job
    finally:
        job.cancel()  # of no effect where it has ended
        with suppress(BaseException):
            await job


async def events(completion: Completion, texts: AsyncIterator[str], reply: Reply) -> AsyncIterator[str]:
    """A streamed answer. One that fails ends with an error and without `finish_reason` and `[DONE]`."""
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
    """The routes that need the model."""

    def __init__(self, run: TrainedRun, limits: ServerLimits, aligner: CtcAligner | None) -> None:
        self.limits, self.aligner = limits, aligner
        self.replies, self.queue = ReplyBuilder(run, limits), RequestQueue(limits.waiting)
        self.model = {"id": self.replies.name, "object": "model", "created": 0, "owned_by": "mtbi"}

    async def complete(self, request: Request) -> Response:
        """An answer, whole or streamed."""
        loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def emit(text: str) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        async with AsyncExitStack() as held:
            held.enter_context(self.queue.reserve())
            file = await held.enter_async_context(upload(request, self.limits.upload_seconds))
            await held.enter_async_context(self.queue.turn())
            asked, reply = await self.queue.work(lambda: self.replies.prepare(file, emit))
            completion = Completion(self.replies.name, wants_usage(asked))
            if asked.stream:
                return EventStream(events(completion, written(self.queue, reply, texts), reply), held.pop_all())
            await self.queue.work(reply.generate, reply.writer.abandoned.set)
            writer = reply.writer
            return JSONResponse(completion.whole(writer.text, writer.finish, usage(reply.positions, len(writer.tokens))))

    async def align(self, request: Request) -> JSONResponse:
        """When each word of a recording is spoken."""
        if (aligner := self.aligner) is None:
            reason = "no word times: start `mtbi serve` with --aligner and the name of a CTC model of transformers"
            raise ApiError(404, reason)
        with self.queue.reserve():
            async with upload(request, self.limits.upload_seconds) as file, self.queue.turn():
                return JSONResponse(await self.queue.work(lambda: self.replies.align(aligner, file)))

    def find_model(self, identity: str) -> dict:
        """The model of that name."""
        if identity != self.model["id"]:
            raise unknown_model(identity)
        return self.model


def wants_usage(request: ChatRequest) -> bool:
    """Whether the last chunk of a stream shall count tokens."""
    return bool(request.stream_options and request.stream_options.include_usage)


def make_app(
    run: TrainedRun,
    limits: ServerLimits | None = None,
    aligner: CtcAligner | None = None,
    api_key: str = "",
    origins: Sequence[str] = (),
) -> FastAPI:
    """The server of one run; without an aligner it knows no word times.

    With an `api_key`, only who sends it is answered. `origins` are web sites whose pages may use the API from a browser.
    """
    limits = limits or ServerLimits()
    api = Api(run, limits, aligner)
    app = FastAPI(title="mtbi", docs_url=None, redoc_url=None, openapi_url=None)
    # The last one added is the outermost: errors of all others carry its headers.
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
    """Any error in the API's form."""
    if isinstance(error, HTTPException):  # no such path, another method
        error = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    assert isinstance(error, ApiError)
    return error.response()
