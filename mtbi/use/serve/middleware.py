"""ASGI layers around the server: they count the bytes of a request, notice clients that leave, and check the API key."""

from __future__ import annotations

import asyncio
import hmac
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import IO

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtbi.use.serve.api_types import ApiError, failed
from mtbi.use.serve.limits import ServerLimits

IN_MEMORY_BYTES = 64 * 1024  #: of a waiting upload; the rest is in a temporary file
DRAIN_SECONDS = 2.0  #: for which a refused upload is still received, so that the client reads the error


class RequestLimitMiddleware:
    """Refuses requests that are too large, and cancels the handler of a client that has left."""

    def __init__(self, app: ASGIApp, limits: ServerLimits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection. In the handler, receiving raises ApiError 413 for a request that is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self.limits.body_bytes)
        handler = asyncio.ensure_future(self.app(scope, exchange.receive_counted, exchange.send_answer))
        watcher = asyncio.ensure_future(exchange.cancel_when_client_leaves(handler))
        try:
            await asyncio.wait({handler})
        finally:
            watcher.cancel()
            handler.cancel()  # has no effect on a finished handler
        if handler.cancelled():
            return
        try:
            handler.result()
        except Exception:
            if exchange.answer_begun:
                raise
            response = failed("a request failed").response()
            await response(scope, receive, exchange.send_answer)  # the connection stays usable


class Exchange:
    """One request and its answer. The bytes are counted as they arrive, whatever the request's headers say."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most_bytes: int) -> None:
        self.scope, self.receive, self.send, self.most_bytes = scope, receive, send, most_bytes
        self.answer_begun = False
        self._answer_sent = False
        self._received_bytes = 0
        self._upload_complete = asyncio.Event()

    async def _receive(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._upload_complete.set()
        return message

    async def receive_counted(self) -> Message:
        """The next message of the request. Raises ApiError 413 for a request that is, or claims to be, too large."""
        announced = Headers(scope=self.scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self.most_bytes:
            raise too_large(self.most_bytes, int(announced))
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self.most_bytes:
            raise too_large(self.most_bytes)
        return message

    async def send_answer(self, message: Message) -> None:
        """Send a message of the answer. An unfinished upload is received first."""
        if message["type"] == "http.response.start":
            self.answer_begun = True
            if self.scope["method"] == "POST" and not self._upload_complete.is_set():
                await self._drain()
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answer_sent = True
        await self.send(message)

    async def _drain(self) -> None:
        """Receive the rest of the upload. A client that is cut off while it sends may never read the answer."""
        drained_bytes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._upload_complete.is_set() and drained_bytes <= 2 * self.most_bytes:
                    drained_bytes += len((await self._receive()).get("body", b""))

    async def cancel_when_client_leaves(self, handler: asyncio.Future) -> None:
        """After the upload, wait until the client disconnects; then cancel a handler that has not sent all of its answer."""
        await self._upload_complete.wait()
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not self._answer_sent:
            handler.cancel()


class ApiKeyMiddleware:
    """Refuses requests below `/v1` that do not send the key as `Authorization: Bearer …`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 401, or pass the request on."""
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, self._expected):
                message = "a valid API key is needed: Authorization: Bearer …"
                refusal = ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def too_large(most_bytes: int, bytes_sent: int | None = None) -> ApiError:
    """The error for a request that is too large. `bytes_sent` is None where its size is not known."""
    end = f", this one has {bytes_sent / 1e6:.1f} MB" if bytes_sent else ""
    return ApiError(413, f"a request may have {most_bytes / 1e6:g} MB{end}", "request_too_large")


@asynccontextmanager
async def upload(request: Request, seconds: float) -> AsyncIterator[IO[bytes]]:
    """The body of a request in a file, so that waiting requests take no memory. Raises ApiError 408 after `seconds`."""
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
