"""Requests, errors and answers of the OpenAI chat-completions API, as far as `mtbi serve` understands them.

A parameter that would change the answer and is not supported is an error. A parameter without an effect is accepted.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtbi.use.serve.mix import Word

log = logging.getLogger("uvicorn.error")  # uvicorn prints it without any configuration
#: Parameters without any effect on an answer.
WITHOUT_EFFECT = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
#: Values of unsupported parameters that change nothing. Null, false, 0 and empty values change nothing either.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "top_k": (-1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "detokenize": (True,),
}
#: Unsupported parameters for which false or 0 does change something.
ON_BY_DEFAULT = {"add_generation_prompt", "detokenize", "n", "skip_special_tokens", "spaces_between_special_tokens"}
MOST_WORDS = 1000  #: of a recording, with times
MOST_MESSAGES = 2000
MOST_PARTS = 1000  #: of a message


class ApiError(Exception):
    """An error that is sent to the client in the API's form."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of a response, or of an event in a stream."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response with status, body and headers."""
        return JSONResponse(self.body, self.status, self.headers)


def failed(message: str) -> ApiError:
    """Log the exception that is being handled, and return an error for the client that does not reveal it."""
    log.exception(message)
    return ApiError(500, "the server failed to answer; its log says why", "internal_error")


class InputAudio(BaseModel):
    """A recording in a message."""

    data: str  #: base64, also as a `data:` URI
    format: str | None = None  #: not used: the recording's own header has the format
    words: list[Word] = Field([], max_length=MOST_WORDS)  #: of a mix of speech and text: all words of the recording


class AudioUrl(BaseModel):
    """A recording in the form of some clients. Only `data:` URIs are read."""

    url: str


class ContentPart(BaseModel):
    """A part of a message. `type` is the name of the field that holds it."""

    type: str
    text: str | None = None
    input_audio: InputAudio | None = None
    audio_url: AudioUrl | None = None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[ContentPart] | None = None

    @property
    def parts(self) -> list[ContentPart]:
        """The content as a list of parts."""
        return [ContentPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content or []


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """A request for an answer."""

    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(max_length=MOST_MESSAGES)
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)  #: used instead of `max_tokens` if both are given
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer; at most four. Raises ApiError 400 for others."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(texts) > 4 or "" in texts:
            raise ApiError(400, "stop: give one text or up to four, none of them empty", param="stop")
        return texts

    @property
    def sampled(self) -> bool:
        """Whether tokens are sampled. Otherwise, and by default, each token is the most probable one."""
        return self.temperature != 0 and (self.temperature is not None or self.top_p not in (None, 1))

    def check_supported(self) -> None:
        """Raises ApiError 400 for an unsupported parameter that would change the answer."""
        for name, value in (self.model_extra or {}).items():
            requested = bool(value) or (name in ON_BY_DEFAULT and value is not None)
            if name not in WITHOUT_EFFECT and requested and value not in NEUTRAL.get(name, ()):
                shown = json.dumps(value, ensure_ascii=False)
                shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
                raise ApiError(400, f"{name}: {shown} is not supported by this server", "unsupported_parameter", name[:100])


class AlignRequest(BaseModel):
    """A request for the times of the words in a recording."""

    input_audio: InputAudio
    transcript: str = Field("", max_length=10_000)  #: empty: the aligner recognises the words


def explain(error: ValidationError) -> ApiError:
    """The error for a request's body that does not fit the schema."""
    # `content` is text or a list of parts. The deepest error is about the kind that the client sent.
    details = error.errors(include_url=False, include_context=False, include_input=False)
    deepest = max(details, key=lambda detail: len(detail["loc"]))
    where = ".".join(str(step) for step in deepest["loc"] if step not in ("str", "list[ContentPart]"))[:200]
    return ApiError(400, f"{where}: {deepest['msg']}" if where else deepest["msg"], param=where or None)


class Completion:
    """One answer in the API's form. All its chunks share an id, a time and the model's name."""

    def __init__(self, model: str, with_usage: bool = False) -> None:
        self.envelope = {"id": f"chatcmpl-{uuid.uuid4().hex[:24]}", "created": int(time.time()), "model": model}
        self.with_usage = with_usage  #: whether the last chunk of a stream has token counts

    def whole(self, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {**self.envelope, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> str:
        """An event of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._chunk([choice], {"usage": None} if self.with_usage else {})

    def usage_chunk(self, usage: dict[str, int]) -> str:
        """The event with token counts, after the last piece of an answer."""
        return self._chunk([], {"usage": usage})

    def _chunk(self, choices: Sequence[dict[str, Any]], extra: dict[str, Any]) -> str:
        return event({**self.envelope, "object": "chat.completion.chunk", "choices": choices, **extra})


def event(record: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n"


def usage(prompt_positions: int, answer_tokens: int) -> dict[str, int]:
    """Token counts. Each adapter frame counts as one token of the prompt. The end token is not counted."""
    total = prompt_positions + answer_tokens
    return {"prompt_tokens": prompt_positions, "completion_tokens": answer_tokens, "total_tokens": total}
