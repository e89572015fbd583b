"""From the body of a request to an answer that is ready to be generated.

Recordings are decoded, the conversation is laid out, and its length is compared with the LLM's context.
"""

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
from mtbi.corpus.aligner import Aligner
from mtbi.errors import UserError
from mtbi.llm.chat_format import MARK, ChatFormat
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.generate import ContextError, Decoding, context_length, room_for_answer
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.api_types import AlignRequest, ApiError, ChatRequest, InputAudio, explain
from mtbi.use.serve.limits import ServerLimits
from mtbi.use.serve.messages import ChatTurn, read_messages
from mtbi.use.serve.mix import Mix, Mixer, align_words
from mtbi.use.serve.recordings import RecordingDecoder, extract_recordings
from mtbi.use.serve.writer import Writer

Parsed = TypeVar("Parsed", bound=BaseModel)
SLICE = 10_000  #: characters that are tokenised at a time to count the tokens of a long text
CHARACTERS_A_TOKEN = 32  #: an upper bound of the average over a text


@dataclass
class Reply:
    """An answer that is ready to be generated."""

    positions: int  #: of the prompt in the LLM: tokens and adapter frames
    writer: Writer
    generate: Callable[[], object]  #: generates the answer into the writer


class ReplyBuilder:
    """Prepares answers of one model. Decoding takes memory, so the server prepares one request at a time."""

    def __init__(self, run: TrainedRun, limits: ServerLimits) -> None:
        self.run, self.limits = run, limits
        self.mixer = Mixer(run)
        self.geometry = FrameGeometry.from_config(run.recipe.model)
        self.context = context_length(run.model.llm)
        self.name = run.recipe.name

    def parse(
        self, file: IO[bytes], schema: type[Parsed], count: Callable[[int], None] = lambda _samples: None
    ) -> tuple[Parsed, RecordingDecoder]:
        """A request's body, and the decoder of its recordings, which gets `count`. Raises ApiError for an invalid body."""
        file.seek(0)
        rest, recordings = extract_recordings(file.read(), self.limits)
        try:
            request = schema.model_validate_json(rest)
        except ValidationError as error:
            raise explain(error) from error
        seconds = self.run.recipe.plan.max_audio_seconds
        return request, RecordingDecoder(recordings, self.limits, seconds, count)

    def prepare(self, file: IO[bytes], emit: Callable[[str], object]) -> tuple[ChatRequest, Reply]:
        """The reply to a request. `emit` receives the text of the answer piece by piece. Raises ApiError for a bad request."""
        request, decoder = self.parse(file, ChatRequest, self.frame_counter())
        request.check_supported()
        if request.model and request.model != self.name:
            raise unknown_model(request.model)
        system, turns = read_messages(request.messages)
        self.check_text([system, *(text for turn in turns for text in turn.texts())])
        run = self.run_with(system)
        new_tokens = request.max_completion_tokens or request.max_tokens or self.limits.new_tokens
        talk = Conversation(run, min(new_tokens, self.limits.new_tokens))
        ends = all_end_ids(run.model.llm.generation_config, run.chat.end_id)
        writer = Writer(run.chat.tokenizer, ends, request.stops, emit)
        decoding = decoding_of(request, writer.full)
        try:
            return request, self.reply(talk, turns, decoder, writer, decoding)
        except ContextError as error:
            raise self.too_long(str(error)) from error
        except UserError as error:
            raise ApiError(400, str(error)) from error

    def frame_counter(self) -> Callable[[int], None]:
        """A function that adds up the frames of recordings. It raises ApiError 400 as soon as they fill the LLM's context."""
        frames = 0

        def count(samples: int) -> None:
            nonlocal frames
            frames += self.geometry.frames(samples)
            if self.context is not None and frames >= self.context:
                raise self.too_long(f"the recordings alone take {frames} or more")

        return count

    def reply(
        self, talk: Conversation, turns: list[ChatTurn], decoder: RecordingDecoder, writer: Writer, decoding: Decoding
    ) -> Reply:
        """Decode the recordings, and lay out the LLM's input. Raises ApiError and UserError."""
        for question, answer in zip(turns[:-1:2], turns[1::2], strict=True):
            talk.recall(*question.split(decoder), answer.split(decoder)[1])
        said, prompt = turns[-1].split(decoder)
        if not said and not prompt.strip():
            raise ApiError(400, "the last message is empty")
        values = [content.value for turn in turns for content in turn.contents]
        timed = [value for value in values if isinstance(value, InputAudio) and value.words]
        if timed:
            if len(turns) > 1 or len(said) > 1 or not isinstance(said[0], np.ndarray):
                raise ApiError(400, "words: a recording with words must be the only speech, in the first message")
            embeddings = self.mixer.embed_dialogue(talk, Mix(said[0], timed[0].words), prompt)
            positions, generate = len(embeddings), partial(self.mixer.generate, talk, embeddings, writer, decoding)
        else:
            positions = sum(map(self.positions, talk.asked(said, prompt)))
            generate = partial(talk.say, said, prompt, writer, decoding)
        room_for_answer(self.run.model.llm, positions, 1)
        return Reply(positions, writer, generate)

    def positions(self, piece: Tensor | np.ndarray) -> int:
        """LLM positions of token ids or of a waveform."""
        return self.geometry.frames(len(piece)) if isinstance(piece, np.ndarray) else len(piece)

    def check_text(self, texts: list[str]) -> None:
        """Raises ApiError 400 if the texts alone fill the LLM's context.

        Their characters are counted first, because tokenising a very long text takes memory.
        """
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
        """The error for a prompt that does not fit."""
        message = f"this model's maximum context length is {self.context} tokens: {reason}"
        return ApiError(400, message, "context_length_exceeded", "messages")

    def run_with(self, system: str) -> TrainedRun:
        """The run with a request's system prompt, if that is another one than in training.

        Raises ApiError 400 if the chat template takes no system prompt.
        """
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

    def align(self, aligner: Aligner, file: IO[bytes]) -> dict:
        """Word times of a recording. Raises ApiError 400 if its words cannot be aligned."""
        request, decoder = self.parse(file, AlignRequest)
        wave = decoder.decode(request.input_audio, "input_audio")
        try:
            words = align_words(aligner, wave, request.transcript.strip())
        except UserError as error:
            raise ApiError(400, str(error)) from error
        return {"duration": len(wave) / SAMPLE_RATE, "words": [word.model_dump() for word in words]}


def decoding_of(request: ChatRequest, stop: Callable[[], bool]) -> Decoding:
    """How the tokens of the answer are chosen. Without a seed, every request is sampled with a new one."""
    if not request.sampled:
        return Decoding(stop=stop)
    temperature = 1.0 if request.temperature is None else request.temperature
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return Decoding(temperature, request.top_p or 1.0, seed, stop)


def unknown_model(name: str) -> ApiError:
    """The error for another model than the one that is served."""
    reason = f"the model {name[:100]!r} does not exist here: GET /v1/models lists what is served"
    return ApiError(404, reason, "model_not_found", "model")
