"""A proxy between an S3 client and a real S3 server. It makes chosen faults in chosen numbers of requests."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_SECONDS = 2.0
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"  # AWS's answer


class Faults:
    """The faults of the next requests: each entry of `waiting` is `500`, `503`, `slow`, `truncated`, `dropped` or `expired`."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.waiting: list[str] = []
        self.requests = 0
        self.sent_bytes = 0  #: of answers' bodies
        self.lock = threading.Lock()

    def take(self) -> str:
        """The fault of the next request; empty for none."""
        with self.lock:
            self.requests += 1
            return self.waiting.pop(0) if self.waiting else ""


class Handler(BaseHTTPRequestHandler):
    """Passes requests to the server, unless a fault is due."""

    protocol_version = "HTTP/1.1"
    faults: Faults

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""

    def handle_any(self) -> None:
        """Handle one request."""
        fault = self.faults.take()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "dropped":
            self.hang_up()
            return
        if fault in ("500", "503", "expired"):
            answer_body = EXPIRED if fault == "expired" else b""
            self.send_response(400 if fault == "expired" else int(fault))
            self.send_header("Content-Length", str(len(answer_body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer_body)
            return
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        upstream = http.client.HTTPConnection(urlsplit(self.faults.server).netloc, timeout=30)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        content = answer.read()
        with self.faults.lock:
            self.faults.sent_bytes += len(content) * (self.command != "HEAD")
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if fault == "truncated" else content)
        if fault == "truncated":
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection at once."""
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_PUT = do_POST = handle_any


@contextlib.contextmanager
def faulty_proxy(server: str) -> Iterator[tuple[str, Faults]]:
    """Run the proxy before `server`; yields its address, and the faults to fill in."""
    faults = Faults(server)
    handler = type("BoundHandler", (Handler,), {"faults": faults})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", faults
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
