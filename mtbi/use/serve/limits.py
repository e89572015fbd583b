"""What one server takes on, and the ASGI layers that hold it: bytes are counted as they come, and who leaves is noticed."""

from __future__ import annotations

import asyncio
import hmac
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtbi.errors import UserError
from mtbi.use.serve.api_types import ApiError, failed

KEY_VARIABLE = "MTBI_API_KEY"  #: of the environment
IN_MEMORY_BYTES = 64 * 1024  #: of an upload that waits; the rest lies in a temporary file
DRAIN_SECONDS = 2.0  #: for which the rest of a refused upload is read, so that the client reads the reason


class ServerLimits(BaseModel):
    """What one server takes on."""

    megabytes: float = 25.0  #: of a request
    waiting: int = 64  #: requests at once, the one being answered included
    new_tokens: int = 512  #: longest answer
    upload_seconds: float = 120.0  #: in which a request must have come
    rates_hz: tuple[int, int] = (4_000, 384_000)  #: sampling rates
    channels: int = 8  #: of a recording

    @property
    def body_bytes(self) -> int:
        """Of a request."""
        return int(self.megabytes * 1e6)

    @property
    def text_bytes(self) -> int:
        """Of a request without its recordings: as objects they take many times as much."""
        return self.body_bytes // 10

    @property
    def decoded_samples(self) -> int:
        """Of a recording with all its channels, and of all waveforms of a request: as float32 half the largest request.

        Half a minute at 16 kHz is always possible.
        """
        return max(500_000, self.body_bytes // 8)


class RequestLimitMiddleware:
    """Counts what a client sends, whatever its headers say, and cancels the handler of a client that has left."""

    def __init__(self, app: ASGIApp, limits: ServerLimits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receiving raises ApiError 413 for a request that is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, received = self.limits.body_bytes, 0
        announced = Headers(scope=scope).get("content-length", "")
        whole, begun, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def take() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                whole.set()
            return message

        async def counted() -> Message:
            nonlocal received
            if announced.isdigit() and int(announced) > most:
                raise too_large(most, int(announced))
            message = await take()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large(most)
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.set()
                if scope["method"] == "POST" and not whole.is_set():
                    await drain()
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()
            await send(message)

        async def drain() -> None:
            """Who is cut off while it still sends may never read the answer."""
            drained = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    while not whole.is_set() and drained <= 2 * most:
                        drained += len((await take()).get("body", b""))

        async def watch() -> None:
            await whole.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            if not answered.is_set():
                handler.cancel()

        handler = asyncio.ensure_future(self.app(scope, counted, answer))
        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({handler})
        finally:
            watcher.cancel()
            handler.cancel()  # of no effect where it has ended
        if handler.cancelled():
            return
        try:
            handler.result()
        except Exception:
            if begun.is_set():
                raise
            await failed("a request failed").response()(scope, receive, answer)  # the connection stays usable


class ApiKeyMiddleware:
    """Refuses requests below `/v1` without the key, as `Authorization: Bearer …`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 or passes the request on."""
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, self._expected):
                headers = {"WWW-Authenticate": "Bearer"}
                refusal = ApiError(
                    401, "a valid API key is needed: Authorization: Bearer …", "invalid_api_key", headers=headers
                )
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def too_large(most: int, size: int | None = None) -> ApiError:
    """The error about a request of so many bytes; None: nobody knows how many."""
    end = f", this one has {size / 1e6:.1f} MB" if size else ""
    return ApiError(413, f"a request may have {most / 1e6:g} MB{end}", "request_too_large")


def read_api_key(file: Path | None) -> str:
    """The key that clients of `mtbi serve` must send: what a file holds, or MTBI_API_KEY; empty: none.

    Raises UserError for what no client can send.
    """
    if file is None and KEY_VARIABLE not in os.environ:
        return ""
    source = KEY_VARIABLE if file is None else f"--api-key-file {file}"
    key = (os.environ[KEY_VARIABLE] if file is None else file.read_text(encoding="utf-8", errors="replace")).strip()
    if not key:
        raise UserError(f"{source}: empty; put a key there, or leave it out to let everybody in")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{source}: a key is one line of letters, digits and signs without spaces")
    return key


@asynccontextmanager
async def upload(request: Request, seconds: float) -> AsyncIterator[IO[bytes]]:
    """The body of a request, in a file: what waits for its turn takes no memory. Raises ApiError 408 where it takes longer."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client has left")
                    file.write(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise ApiError(408, f"the request was not complete after {seconds:g} seconds") from error
        yield file
