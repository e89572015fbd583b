"""HTTP requests by the standard library, for tests that send what the client of the public API cannot send."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """The server's response."""

    status: int
    headers: HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """The error in the API's form."""
        return self.json["error"]


def call(
    method: str,
    address: str,
    path: str = "/",
    body: str | bytes | dict | Iterable[bytes] | None = None,
    headers: dict[str, Any] | None = None,
) -> Answer:
    """Send a request; a body of several pieces is sent in chunks."""
    if isinstance(body, dict):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body
    connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())
    finally:
        connection.close()


def post(address: str, body: str | bytes | dict | Iterable[bytes], headers: dict[str, Any] | None = None) -> Answer:
    """Send a chat request."""
    return call("POST", address, "/v1/chat/completions", body, headers)
