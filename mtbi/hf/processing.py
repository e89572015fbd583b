"""Text and recordings to what the exported model reads."""
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
#: Arguments of other processors, and the values of theirs that mean what this one does.
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
    """Whether an argument asks for nothing else than what the processor does."""
    return any(value is usual or (isinstance(value, str) and value == usual) for usual in USUAL[name])


class MtbiFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms side by side: the model computes its features by itself."""

    model_input_names: ClassVar[list[str]] = ["input_values", "input_lengths"]

    def __init__(self, sampling_rate: int = sound.SAMPLE_RATE, max_seconds: float = 30.0, **kwargs: Any) -> None:
        """`max_seconds` is the longest utterance of the training."""
        self.max_seconds = max_seconds
        super().__init__(**{"feature_size": 1, "padding_value": 0.0, **kwargs, "sampling_rate": sampling_rate})

    def __call__(self, recordings: Sequence[Recording], sampling_rate: int | None = None) -> BatchFeature:
        """`input_values (clips, samples)` and `input_lengths (clips,)` in samples.

        Raises RecordingError, which is a ValueError, for an unusable recording (see `mtbi.audio.waveforms`), for another
        sampling rate, and for a recording that is longer than what the model was trained on.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise RecordingError(
                f"waveforms at {sampling_rate} Hz: resample them to {self.sampling_rate} Hz, "
                "or give files or {'array': …, 'sampling_rate': …}, which are resampled"
            )
        waves = [torch.from_numpy(waveform(one, sampling_rate)) for one in recordings]
        for wave in waves:
            if len(wave) > self.max_seconds * self.sampling_rate:
                seconds = len(wave) / self.sampling_rate
                raise RecordingError(f"{seconds:.1f} s of speech, and the model was trained on at most {self.max_seconds:g} s")
        values = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        return BatchFeature({"input_values": values, "input_lengths": torch.tensor([len(wave) for wave in waves])})


class MtbiProcessor(ProcessorMixin):
    """Token ids in which each recording takes as many audio tokens as it has adapter frames, and the recordings themselves."""

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
        """`geometry` are the fields of `FrameGeometry`: how many adapter frames a recording becomes."""
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
        """`input_ids` and `attention_mask (batch, tokens)`, padded on the left, and with recordings `input_values`,
        `input_lengths`. `text` is what the chat template makes, with one `<|audio|>` for each recording, in order.

        Raises ValueError where these do not match, for arguments that would have no effect (`USUAL`), and what the feature
        extractor raises. Others in `kwargs` are the chat template's.
        """
        ignored = [name for name in USUAL if not is_usual(name, kwargs.get(name))]
        if ignored:
            raise ValueError(
                f"{', '.join(ignored)}: the processor takes `text` and `audio`, pads texts on their left to the longest, "
                "and cuts nothing"
            )
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError("`text` is a text or a list of texts, as the chat template makes it")
        recordings = listed(audio)
        marks = sum(one.count(AUDIO_TOKEN) for one in texts)
        if marks != len(recordings):
            raise ValueError(f"{marks} {AUDIO_TOKEN} in the text and {len(recordings)} recordings")
        heard = self.feature_extractor(recordings, sampling_rate) if recordings else BatchFeature({})
        geometry = FrameGeometry(**self.geometry)
        counts = (geometry.frames(int(length)) for length in heard.get("input_lengths", ()))
        rows = [self._ids(one, counts) for one in texts]
        width = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchFeature({"input_ids": ids, "attention_mask": mask, **heard})

    def _ids(self, text: str, counts: Iterator[int]) -> list[int]:
        """Each stretch of text is tokenised by itself, as in training."""
        tokens = Tokens(self.tokenizer)
        ids: list[int] = []
        for piece in re.split(f"({re.escape(AUDIO_TOKEN)})", text):
            if piece == AUDIO_TOKEN:
                ids += [self.audio_token_id] * next(counts)
            elif piece:
                ids += tokens.ids(piece)
        return ids

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """As for every processor. A message's content is text, or parts of the types `text` and `audio` (see `parts`).

        The text after the last recording is the prompt, or where there is none the text before the first one. No text becomes a
        control token. Raises ValueError for what is neither text nor audio, and for unusable recordings.
        """
        harmless = Tokens(self.tokenizer).harmless
        talks = [[parts.read_message(message, harmless) for message in talk] for talk in parts.conversations(conversation)]
        single = parts.is_message(conversation[0])
        made = super().apply_chat_template(talks[0] if single else talks, chat_template, **kwargs)
        if isinstance(made, str):
            return made.replace(APART, "")
        return [one.replace(APART, "") if isinstance(one, str) else one for one in made] if isinstance(made, list) else made

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes."""
        return ["input_ids", "attention_mask", "input_values", "input_lengths"]
