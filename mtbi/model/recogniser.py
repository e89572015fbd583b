"""Recognisers: from waveforms to transcripts, for the cascade of a recogniser and the text LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mtbi import plugins
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.corpus.align import open_aligner
from mtbi.errors import UserError

Transcriber = Callable[[Sequence[np.ndarray]], list[str]]  #: from waveforms `(samples,)` at 16 kHz to a transcript of each


class Seq2SeqRecogniser:
    """A sequence-to-sequence recogniser of transformers, such as Whisper. Transcripts are greedy."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any) -> None:
        """`model` is in evaluation mode and on its device."""
        self.model, self.extractor, self.tokenizer = model, extractor, tokenizer
        self.is_whisper = model.config.model_type == "whisper"

    @classmethod
    def load(cls, path: str, device: torch.device) -> Seq2SeqRecogniser:
        """Raises UserError where `path` holds no such recogniser."""
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        try:
            processor: Any = AutoProcessor.from_pretrained(path)
            model = AutoModelForSpeechSeq2Seq.from_pretrained(path, dtype=torch.float32)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no recogniser with its processor could be loaded ({error})") from error
        return cls(model.eval().to(device), processor.feature_extractor, processor.tokenizer)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """A transcript of each waveform. Whisper finds out the language of each, and reads long ones in windows."""
        if not self.is_whisper:
            return self._transcribe(waveforms, {"padding": True})
        long = [len(waveform) > self.extractor.n_samples for waveform in waveforms]
        short = iter(self._transcribe([wave for wave, is_long in zip(waveforms, long, strict=True) if not is_long], {}))
        windows = {"truncation": False, "padding": "longest"}
        return [
            self._transcribe([wave], windows, return_timestamps=True)[0] if is_long else next(short)
            for wave, is_long in zip(waveforms, long, strict=True)
        ]

    @torch.inference_mode()
    def _transcribe(self, waveforms: Sequence[np.ndarray], layout: dict[str, object], **settings: object) -> list[str]:
        if not waveforms:
            return []
        waves = [np.asarray(wave, dtype=np.float32) for wave in waveforms]
        inputs = self.extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True, **layout)
        if getattr(self.model.generation_config, "is_multilingual", False):
            settings["task"] = "transcribe"
        inputs = inputs.to(self.model.device, self.model.dtype)
        ids = self.model.generate(**inputs, do_sample=False, num_beams=1, **settings)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def open_recogniser(name: str, device: torch.device | None = None) -> Transcriber:
    """A recogniser by name or folder: `demo`, one of Whisper's kind, or a CTC model.

    Raises UserError for a model that recognises no speech.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in plugins.SHIPPED[plugins.ALIGNERS] and _is_seq2seq(name):
        return Seq2SeqRecogniser.load(name, device)
    aligner = open_aligner(name)
    return lambda waveforms: [aligner.transcribe(waveform) for waveform in waveforms]


def _is_seq2seq(name: str) -> bool:
    """Whether a model's configuration is that of a sequence-to-sequence recogniser."""
    from transformers import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, AutoConfig

    try:
        return type(AutoConfig.from_pretrained(name)) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: no model of transformers ({error})") from error
