"""The processor of an exported model: text and recordings become token ids and waveforms."""
# mypy: disable-error-code="override, attr-defined, assignment, misc"

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from transformers import BatchFeature, ProcessorMixin, SequenceFeatureExtractor

from mtbi.audio import codec as sound
from mtbi.audio.waveforms import Recording, RecordingError, listed, waveform
from mtbi.hf import parts
from mtbi.llm.control_tokens import APART, Tokens
from mtbi.model.frame_counts import FrameGeometry

AUDIO_TOKEN = "<|audio|>"
#: Arguments of other processors, and the values that mean the same as what this processor does anyway.
USUAL: dict[str, tuple[bool | str | None, ...]] = {
    "audios": (None,),
    "images": (None,),
    "max_length": (None,),
    "padding": (None, True, "longest"),
    "padding_side": (None, "left"),
    "truncation": (None, False),
    "videos": (None,),
}


def is_usual(name: str, value: Any) -> bool:
    """Whether the value of an argument changes nothing."""
    return any(value is usual or (isinstance(value, str) and value == usual) for usual in USUAL[name])


class MtbiFeatureExtractor(SequenceFeatureExtractor):
    """Pads waveforms to one length. The model itself computes features from them."""

    model_input_names: ClassVar[list[str]] = ["input_values", "input_lengths"]

    def __init__(self, sampling_rate: int = sound.SAMPLE_RATE, max_seconds: float = 30.0, **kwargs: Any) -> None:
        """`max_seconds` is the longest utterance of the training."""
        self.max_seconds = max_seconds
        super().__init__(**{"feature_size": 1, "padding_value": 0.0, **kwargs, "sampling_rate": sampling_rate})

    def __call__(self, recordings: Sequence[Recording], sampling_rate: int | None = None) -> BatchFeature:
        """`input_values (clips, samples)` and `input_lengths (clips,)` in samples.

        Raises RecordingError, which is a ValueError, for an unusable recording (see `mtbi.audio.waveforms`), for another
        sampling rate, and for a recording longer than those that the model was trained on.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise RecordingError(
                f"waveforms at {sampling_rate} Hz: resample them to {self.sampling_rate} Hz, "
                "or give files or {'array': …, 'sampling_rate': …}, which are resampled"
            )
        waves = [torch.from_numpy(waveform(recording, sampling_rate)) for recording in recordings]
        for wave in waves:
            if len(wave) > self.max_seconds * self.sampling_rate:
                seconds = len(wave) / self.sampling_rate
                raise RecordingError(f"{seconds:.1f} s of speech, and the model was trained on at most {self.max_seconds:g} s")
        values = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        return BatchFeature({"input_values": values, "input_lengths": torch.tensor([len(wave) for wave in waves])})


class MtbiProcessor(ProcessorMixin):
    """Makes token ids, with one audio token for each adapter frame of a recording, and waveforms."""

    attributes: ClassVar[list[str]] = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "MtbiFeatureExtractor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        geometry: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """`geometry` are the fields of `FrameGeometry`, which counts the adapter frames of a recording."""
        self.geometry = geometry or {"stages": [[1, sound.SAMPLE_RATE]], "stack": 1}
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Recording | Sequence[Recording] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask (batch, tokens)`, padded on the left.

        With recordings also `input_values (clips, samples)` and `input_lengths (clips,)`.

        `text` comes from the chat template and has one `<|audio|>` for each recording, in order. `kwargs` may hold the chat
        template's arguments. Raises ValueError if the number of recordings is another one, and for arguments that would have no
        effect (`USUAL`). Raises RecordingError as the feature extractor does.
        """
        ignored = [name for name in USUAL if not is_usual(name, kwargs.get(name))]
        if ignored:
            raise ValueError(
                f"{', '.join(ignored)}: the processor takes `text` and `audio`, pads texts on their left to the longest, "
                "and cuts nothing"
            )
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("`text` is a text or a list of texts, made by the chat template")
        recordings = listed(audio)
        marks = sum(text.count(AUDIO_TOKEN) for text in texts)
        if marks != len(recordings):
            raise ValueError(f"{marks} {AUDIO_TOKEN} in the text and {len(recordings)} recordings")
        speech = self.feature_extractor(recordings, sampling_rate) if recordings else BatchFeature({})
        geometry = FrameGeometry(**self.geometry)
        counts = (geometry.frames(int(length)) for length in speech.get("input_lengths", ()))
        rows = [self._ids(text, counts) for text in texts]
        width = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchFeature({"input_ids": ids, "attention_mask": mask, **speech})

    def _ids(self, text: str, counts: Iterator[int]) -> list[int]:
        """Token ids of a text. Each stretch between recordings is tokenised by itself, as in training."""
        tokens = Tokens(self.tokenizer)
        ids: list[int] = []
        for piece in re.split(f"({re.escape(AUDIO_TOKEN)})", text):
            if piece == AUDIO_TOKEN:
                ids += [self.audio_token_id] * next(counts)
            elif piece:
                ids += tokens.ids(piece)
        return ids

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Lay out a conversation, with the usual arguments of transformers.

        A message's content is text, or a list of `text` and `audio` parts (see `mtbi.hf.parts`). The text after the last
        recording is the prompt; if there is none, the text before the first recording is. No text of a user becomes a control
        token. Raises ValueError for other types of parts, and for unusable recordings.
        """
        harmless = Tokens(self.tokenizer).harmless
        talks = [[parts.read_message(message, harmless) for message in talk] for talk in parts.conversations(conversation)]
        single = parts.is_message(conversation[0])
        rendered = super().apply_chat_template(talks[0] if single else talks, chat_template, **kwargs)
        if isinstance(rendered, str):
            return rendered.replace(APART, "")
        if isinstance(rendered, list):
            return [row.replace(APART, "") if isinstance(row, str) else row for row in rendered]
        return rendered

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs."""
        return ["input_ids", "attention_mask", "input_values", "input_lengths"]
