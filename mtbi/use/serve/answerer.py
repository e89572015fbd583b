"""From a request's body to a reply that can be generated: recordings decoded, conversation built, length checked."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from torch import Tensor

from mtbi.answers.teacher import all_end_ids
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.corpus.align import CtcAligner
from mtbi.errors import UserError
from mtbi.llm.chat_format import MARK, ChatFormat
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.generate import ContextError, Decoding, context_length, room_for_answer
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.api_types import AlignRequest, ApiError, AudioUrl, ChatRequest, InputAudio, Message, explain
from mtbi.use.serve.limits import Limits
from mtbi.use.serve.mix import Mix, Mixer, align_words
from mtbi.use.serve.recordings import Listener, cut_out
from mtbi.use.serve.writer import Writer
from mtbi.use.turn import split_prompt

Parsed = TypeVar("Parsed", bound=BaseModel)
SLICE = 10_000  #: characters that are tokenised at once to count them
CHARACTERS_A_TOKEN = 32  #: no text has more on average
#: Of an assistant's message: what the model cannot be told.
NOT_TOLD = ("tool_calls", "function_call", "audio", "refusal")


@dataclass
class Reply:
    """An answer that can be generated."""

    positions: int  #: that the LLM reads: tokens and adapter frames
    writer: Writer
    generate: Callable[[], object]  #: fills the writer


def pieces(parts: list[tuple[str, str | InputAudio | AudioUrl]], listener: Listener) -> tuple[list[str | np.ndarray], str]:
    """What is said and the prompt about it. Each part comes with its name. Raises ApiError 400 for an unusable recording."""
    return split_prompt([part if isinstance(part, str) else listener.listen(part, where) for where, part in parts])


def parts_of(message: Message, number: int) -> list[tuple[str, str | InputAudio | AudioUrl]]:
    """The pieces of a message, each with its name. Raises ApiError 400 for other kinds than text and recordings."""
    found: list[tuple[str, str | InputAudio | AudioUrl]] = []
    for place, part in enumerate(message.parts, start=1):
        where = f"messages.{number}.content, part {place}"
        known = {"text": part.text, "input_audio": part.input_audio, "audio_url": part.audio_url}
        if part.type not in known:
            raise ApiError(400, f"{where}: a part of type {part.type[:40]!r} is not understood; send text or input_audio")
        value = known[part.type]
        if value is None:
            raise ApiError(400, f"{where}: an {part.type} part needs the field `{part.type}`")
        found.append((where, value))
    return found


class Answerer:
    """Prepares answers with one model. What it does takes memory, so it is asked for one request at a time."""

    def __init__(self, run: TrainedRun, limits: Limits) -> None:
        self.run, self.limits = run, limits
        self.mixer = Mixer(run)
        self.geometry = FrameGeometry.from_config(run.recipe.model)
        self.context = context_length(run.model.llm)
        self.name = run.recipe.name

    def parse(
        self, file: IO[bytes], schema: type[Parsed], room: Callable[[int], None] = lambda _samples: None
    ) -> tuple[Parsed, Listener]:
        """A request's body, and what decodes its recordings. Raises ApiError for a body that is wrong."""
        file.seek(0)
        rest, recordings = cut_out(file.read(), self.limits)
        try:
            request = schema.model_validate_json(rest)
        except ValidationError as error:
            raise explain(error) from error
        seconds = self.run.recipe.plan.max_audio_seconds
        return request, Listener(recordings, self.limits, seconds, room)

    def prepare(self, file: IO[bytes], emit: Callable[[str], object]) -> tuple[ChatRequest, Reply]:
        """The reply to a request; `emit` will get its pieces. Raises ApiError for what cannot be answered."""
        heard = 0

        def room(samples: int) -> None:
            nonlocal heard
            heard += self.geometry.frames(samples)
            if self.context is not None and heard >= self.context:
                raise self.too_long(f"the recordings alone take {heard} or more")

        request, listener = self.parse(file, ChatRequest, room)
        request.check_supported()
        if request.model and request.model != self.name:
            raise unknown_model(request.model)
        system, turns = self.turns(request.messages)
        self.check_text([system, *(part for _, parts in turns for _, part in parts if isinstance(part, str))])
        run = self.run_with(system)
        wanted = request.max_completion_tokens or request.max_tokens or self.limits.new_tokens
        talk = Conversation(run, min(wanted, self.limits.new_tokens))
        ends = all_end_ids(run.model.llm.generation_config, run.chat.end_id)
        writer = Writer(run.chat.tokenizer, ends, request.stops, emit)
        decoding = decoding_of(request, writer.full)
        try:
            return request, self.reply(talk, turns, listener, writer, decoding)
        except ContextError as error:
            raise self.too_long(str(error)) from error
        except UserError as error:
            raise ApiError(400, str(error)) from error

    def reply(self, talk: Conversation, turns: list, listener: Listener, writer: Writer, decoding: Decoding) -> Reply:
        """Decode, and lay out what the LLM gets. Raises ApiError and UserError."""
        for (_, question), (_, answer) in zip(turns[:-1:2], turns[1::2], strict=True):
            talk.recall(*pieces(question, listener), pieces(answer, listener)[1])
        _, parts = turns[-1]
        said, prompt = pieces(parts, listener)
        if not said and not prompt.strip():
            raise ApiError(400, "the last message is empty")
        timed = [part for _, parts in turns for _, part in parts if isinstance(part, InputAudio) and part.words]
        if timed:
            if len(turns) > 1 or len(said) > 1 or not isinstance(said[0], np.ndarray):
                raise ApiError(400, "words: a recording with words must be the only thing that is said, in the first message")
            asked = self.mixer.asked(talk, Mix(said[0], timed[0].words), prompt)
            positions, generate = len(asked), partial(self.mixer.reply, talk, asked, writer, decoding)
        else:
            positions = sum(map(self.positions, talk.asked(said, prompt)))
            generate = partial(talk.say, said, prompt, writer, decoding)
        room_for_answer(self.run.model.llm, positions, 1)
        return Reply(positions, writer, generate)

    def positions(self, piece: Tensor | np.ndarray) -> int:
        """LLM positions of token ids or of a waveform."""
        return self.geometry.frames(len(piece)) if isinstance(piece, np.ndarray) else len(piece)

    def turns(self, messages: list[Message]) -> tuple[str, list[tuple[str, list[tuple[str, str | InputAudio | AudioUrl]]]]]:
        """The system prompt, and user and assistant in turn, each with their pieces; messages of a user in a row are one.

        Raises ApiError 400 for another order, other roles and messages without content.
        """
        system: list[str] = []
        turns: list[tuple[str, list[tuple[str, str | InputAudio | AudioUrl]]]] = []
        for number, message in enumerate(messages):
            role, where = message.role, f"messages.{number}"
            if role not in ("system", "developer", "user", "assistant"):
                raise ApiError(400, f"{where}.role: {role[:40]!r} is not understood; send system, developer, user or assistant")
            extra = message.model_extra or {}
            if given := [name for name in NOT_TOLD if extra.get(name)]:
                raise ApiError(400, f"{where}.{given[0]}: not supported by this server", "unsupported_parameter")
            if message.content is None and role != "assistant":
                raise ApiError(400, f"{where}.content: null; send text or parts")
            parts = parts_of(message, number)
            if role != "user" and not all(isinstance(part, str) for _, part in parts):
                raise ApiError(400, f"{where}: only messages of the user may hold recordings")
            if role in ("system", "developer"):
                if turns:
                    raise ApiError(400, f"{where}: a {role} message must come before all others")
                system += [part for _, part in parts if isinstance(part, str)]
            elif role == "user" and turns and turns[-1][0] == "user":
                turns[-1][1].extend(parts)
            else:
                turns.append((role, parts))
        roles = [role for role, _ in turns]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            hint = "; leave out the greeting with which the assistant begins" if roles[:1] == ["assistant"] else ""
            raise ApiError(400, f"messages must be user, assistant, user, … and end with the user's{hint}")
        return "\n".join(system).strip(), turns

    def check_text(self, texts: list[str]) -> None:
        """Raises ApiError 400 where the texts alone fill the context: before they are tokenised, which takes memory."""
        characters = sum(map(len, texts))
        if self.context is None or characters < self.context:
            return
        if characters > self.context * CHARACTERS_A_TOKEN:
            raise self.too_long(f"the text alone has {characters} characters")
        tokens = 0
        for text in texts:
            for start in range(0, len(text), SLICE):
                tokens += len(self.run.chat.text_ids(text[start : start + SLICE]))
                if tokens > self.context + len(texts):  # a cut may split a token
                    raise self.too_long(f"the text alone takes {tokens} or more")

    def too_long(self, reason: str) -> ApiError:
        """The error about a prompt that does not fit."""
        message = f"this model's maximum context length is {self.context} tokens: {reason}"
        return ApiError(400, message, "context_length_exceeded", "messages")

    def run_with(self, system: str) -> TrainedRun:
        """The run, with another system prompt than it was trained with if there is one. Raises ApiError 400 where it cannot."""
        trained = self.run.chat
        if system in ("", trained.system_prompt):
            return self.run
        try:
            chat = ChatFormat(trained.tokenizer, system, new_tokens=trained.new_tokens)
            without = ChatFormat(trained.tokenizer).prefix_ids
            if MARK in system or chat.prefix_ids == without:
                raise UserError("it ignores the system message")
        except UserError as error:
            reason = f"the chat template of this model takes no system message ({error}); send the text as the user's"
            raise ApiError(400, reason) from error
        return replace(self.run, chat=chat)

    def align(self, aligner: CtcAligner, file: IO[bytes]) -> dict:
        """Word times of a recording. Raises ApiError 400 for what cannot be aligned."""
        request, listener = self.parse(file, AlignRequest)
        wave = listener.listen(request.input_audio, "input_audio")
        try:
            words = align_words(aligner, wave, request.transcript.strip())
        except UserError as error:
            raise ApiError(400, str(error)) from error
        return {"duration": len(wave) / SAMPLE_RATE, "words": [word.model_dump() for word in words]}


def decoding_of(request: ChatRequest, stop: Callable[[], bool]) -> Decoding:
    """How the client wants its answer chosen; without a seed, each answer is drawn anew."""
    if not request.sampled:
        return Decoding(stop=stop)
    temperature = 1.0 if request.temperature is None else request.temperature
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return Decoding(temperature, request.top_p or 1.0, seed, stop)


def unknown_model(name: str) -> ApiError:
    """The error about another model than the one that is served."""
    reason = f"the model {name[:100]!r} does not exist here: GET /v1/models lists what is served"
    return ApiError(404, reason, "model_not_found", "model")
