"""The messages of a request as turns: who spoke, and the texts and recordings of each turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from mtbi.use.serve.api_types import ApiError, AudioUrl, ContentPart, InputAudio, Message
from mtbi.use.serve.recordings import RecordingDecoder
from mtbi.use.turn import MessagePart, split_prompt

ROLES = ("system", "developer", "user", "assistant")
#: Fields of an assistant's message that the model cannot read.
UNSUPPORTED_FIELDS = ("tool_calls", "function_call", "audio", "refusal")


@dataclass(frozen=True)
class Content:
    """A part of a message."""

    where: str  #: for errors, such as `messages.0.content, part 2`
    value: str | InputAudio | AudioUrl


@dataclass
class ChatTurn:
    """Neighbouring messages of one role."""

    role: str  #: `user` or `assistant`
    contents: list[Content] = field(default_factory=list)

    def texts(self) -> list[str]:
        """The texts among the parts."""
        return [content.value for content in self.contents if isinstance(content.value, str)]

    def split(self, decoder: RecordingDecoder) -> tuple[list[MessagePart], str]:
        """The speech and the prompt about it (`split_prompt`). Raises ApiError 400 for an unusable recording."""
        return split_prompt([decode(content, decoder) for content in self.contents])


def decode(content: Content, decoder: RecordingDecoder) -> MessagePart:
    """A text, or a recording as `(samples,)` at 16 kHz. Raises ApiError 400 for an unusable recording."""
    return content.value if isinstance(content.value, str) else decoder.decode(content.value, content.where)


def read_messages(messages: list[Message]) -> tuple[str, list[ChatTurn]]:
    """The system prompt, and the turns of user and assistant.

    Raises ApiError 400 for another order than user, assistant, user, …, user, for other roles, and for messages without
    content.
    """
    system: list[str] = []
    turns: list[ChatTurn] = []
    for number, message in enumerate(messages):
        check_message(message, number)
        contents = read_contents(message, number)
        if message.role in ("system", "developer"):
            if turns:
                raise ApiError(400, f"messages.{number}: a {message.role} message must come before all others")
            system += ChatTurn(message.role, contents).texts()
        elif message.role == "user" and turns and turns[-1].role == "user":
            turns[-1].contents.extend(contents)
        else:
            turns.append(ChatTurn(message.role, contents))
    check_order([turn.role for turn in turns])
    return "\n".join(system).strip(), turns


def check_message(message: Message, number: int) -> None:
    """Raises ApiError 400 for an unknown role, unsupported fields, and a message without content."""
    where = f"messages.{number}"
    if message.role not in ROLES:
        raise ApiError(400, f"{where}.role: {message.role[:40]!r} is unknown; send {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    extra = message.model_extra or {}
    if unsupported := [name for name in UNSUPPORTED_FIELDS if extra.get(name)]:
        raise ApiError(400, f"{where}.{unsupported[0]}: not supported by this server", "unsupported_parameter")
    if message.content is None and message.role != "assistant":
        raise ApiError(400, f"{where}.content: null; send text or parts")


def check_order(roles: list[str]) -> None:
    """Raises ApiError 400 unless user and assistant alternate, from a user's turn to a user's turn."""
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        hint = "; leave out the greeting with which the assistant begins" if roles[:1] == ["assistant"] else ""
        raise ApiError(400, f"messages must be user, assistant, user, … and end with the user's{hint}")


def read_contents(message: Message, number: int) -> list[Content]:
    """The parts of a message. Raises ApiError 400 for an unknown type of part, and for recordings of another role than user."""
    contents = [
        read_content(part, f"messages.{number}.content, part {index}") for index, part in enumerate(message.parts, start=1)
    ]
    if message.role != "user" and not all(isinstance(content.value, str) for content in contents):
        raise ApiError(400, f"messages.{number}: only messages of the user may hold recordings")
    return contents


def read_content(part: ContentPart, where: str) -> Content:
    """One part. Raises ApiError 400 for another type than text or a recording."""
    values = {"text": part.text, "input_audio": part.input_audio, "audio_url": part.audio_url}
    if part.type not in values:
        raise ApiError(400, f"{where}: a part of type {part.type[:40]!r} is unknown; send text or input_audio")
    value = values[part.type]
    if value is None:
        raise ApiError(400, f"{where}: an {part.type} part needs the field `{part.type}`")
    return Content(where, value)
