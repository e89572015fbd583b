"""Text and recordings to what the exported model reads."""
# mypy: disable-error-code="override, attr-defined, assignment, misc"

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from transformers import BatchFeature, ProcessorMixin, SequenceFeatureExtractor

from mtbi.data import audio as sound
from mtbi.data.audio import Recording
from mtbi.model.geometry import FrameGeometry
from mtbi.tasks.tokens import APART, Tokens

AUDIO_TOKEN = "<|audio|>"


class MtbiFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms side by side: the model computes its features by itself."""

    model_input_names: ClassVar[list[str]] = ["input_values", "input_lengths"]

    def __init__(self, sampling_rate: int = sound.SAMPLE_RATE, max_seconds: float = 30.0, **kwargs: Any) -> None:
        """`max_seconds` is the longest utterance of the training."""
        self.max_seconds = max_seconds
        super().__init__(**{"feature_size": 1, "padding_value": 0.0, **kwargs, "sampling_rate": sampling_rate})

    def __call__(self, recordings: Sequence[Recording], sampling_rate: int | None = None) -> BatchFeature:
        """`input_values (clips, samples)` and `input_lengths (clips,)` in samples.

        Raises UserError for files that cannot be decoded, ValueError for another sampling rate, more than one channel, or a
        recording that is longer than what the model was trained on.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"waveforms at {sampling_rate} Hz: resample them to {self.sampling_rate} Hz, or give files")
        waves = [torch.as_tensor(sound.waveform(one)) for one in recordings]
        for wave in waves:
            if wave.ndim != 1:
                raise ValueError(f"a waveform is (samples,), this one has the shape {tuple(wave.shape)}")
            if len(wave) > self.max_seconds * self.sampling_rate:
                seconds = len(wave) / self.sampling_rate
                raise ValueError(f"{seconds:.1f} s of speech, and the model was trained on at most {self.max_seconds:g} s")
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

        Raises ValueError where these do not match, and what the feature extractor raises.
        """
        if return_tensors != "pt":
            raise ValueError("only PyTorch tensors can be returned: return_tensors='pt'")
        texts = [text] if isinstance(text, str) else list(text)
        several = isinstance(audio, (list, tuple)) and not (len(audio) and isinstance(audio[0], float))
        recordings: Any = audio if several else [] if audio is None else [audio]
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
        """As for every processor. A message's content is text, or parts of the types `text` and `audio`.

        The text after the last recording is the prompt, or where there is none the text before the first one. Recordings are
        files, bytes or waveforms at 16 kHz. No text becomes a control token.
        """
        batched = conversation and not isinstance(conversation[0], dict)
        talks = [[self._message(one) for one in talk] for talk in (conversation if batched else [conversation])]
        made = super().apply_chat_template(talks if batched else talks[0], chat_template, **kwargs)
        if isinstance(made, str):
            return made.replace(APART, "")
        return [one.replace(APART, "") if isinstance(one, str) else one for one in made] if isinstance(made, list) else made

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return {**message, "content": [self._part(part) for part in parts]}

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "audio":
            return {**part, "text": Tokens(self.tokenizer).harmless(part["text"])} if "text" in part else part
        recording = next(part[key] for key in ("audio", "path", "url") if key in part)
        return {"type": "audio", "audio": sound.waveform(recording)}

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes."""
        return ["input_ids", "attention_mask", "input_values", "input_lengths"]
