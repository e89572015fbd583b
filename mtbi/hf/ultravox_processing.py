"""The processor of an export in Ultravox's layout: text and recordings become token ids and features.

This file is copied into every such export and imports nothing of mtbi: vLLM loads it where mtbi is not installed
(`--trust-remote-code`). The features are the same as in training: Whisper's, without the padding to 30 seconds.
"""
# mypy: ignore-errors

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin, WhisperFeatureExtractor
from transformers.utils import cached_file

AUDIO_TOKEN = "<|audio|>"
HOP = 160  # samples of a mel frame
ENCODER_STRIDE = 2  # mel frames of an encoder frame
CHUNK = 480_000  # samples, 30 seconds: the longest input of Whisper
LARGEST_SAMPLE = 8.0  # a larger sample is an integer stored as a float
SILENCE = 800  # samples after a clip, so that no frame contains the reflection at the end


class UltravoxProcessor(ProcessorMixin):
    """Waveforms at 16 kHz to log-mel features, `<|audio|>` in the text to as many tokens as there are adapter frames."""

    attributes = ["audio_processor", "tokenizer"]  # noqa: RUF012
    audio_processor_class = "WhisperFeatureExtractor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, audio_processor=None, tokenizer=None, stack_factor=8, **kwargs):
        """`stack_factor` is the number of encoder frames in an adapter frame."""
        self.stack_factor = stack_factor
        self.audio_token_replacement = AUDIO_TOKEN
        super().__init__(audio_processor, tokenizer)
        self.chat_template = tokenizer.chat_template

    @classmethod
    def from_pretrained(cls, path, trust_remote_code=False, **kwargs):
        """From the export's folder or repository."""
        hub = {key: value for key, value in kwargs.items() if key in ("revision", "cache_dir", "token", "local_files_only")}
        config = json.loads(Path(cached_file(path, "config.json", **hub)).read_text())
        extractor = WhisperFeatureExtractor.from_pretrained(path, **hub)
        return cls(extractor, AutoTokenizer.from_pretrained(path, **hub), config["stack_factor"])

    def __call__(
        self,
        text=None,
        audio=None,
        audios=None,
        sampling_rate=None,
        return_tensors="pt",
        include_audio_num_chunks=False,
        **kwargs,
    ):
        """`audio_values (chunks, mels, frames)`, their lengths, and with a text `input_ids (1, tokens)`.

        A recording of more than 30 seconds becomes several chunks. Raises ValueError for another sampling rate than 16 kHz, and
        where the text holds another number of `<|audio|>` than there are recordings.
        """
        given = audio if audios is None else audios
        recordings = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
        data = self.extract(recordings, sampling_rate) if recordings else {}
        counts = data.pop("audio_num_chunks", [])
        if text is not None:
            data |= self.read(text, counts, data.get("audio_token_len", []))
        if include_audio_num_chunks and recordings:
            data["audio_num_chunks"] = counts
        return BatchFeature(data, tensor_type=return_tensors)

    def extract(self, recordings, sampling_rate):
        """Features of the recordings, and lengths in mel frames and audio tokens."""
        if sampling_rate not in (None, self.audio_processor.sampling_rate):
            raise ValueError(f"recordings at {sampling_rate} Hz: resample them to {self.audio_processor.sampling_rate} Hz")
        waves = [self.checked(wave) for wave in recordings]
        pieces = [[wave[start : start + CHUNK] for start in range(0, max(len(wave), 1), CHUNK)] for wave in waves]
        mels = [self.features(piece) for chunks in pieces for piece in chunks]
        lengths = [mel.shape[1] for mel in mels]
        values = np.stack([np.pad(mel, ((0, 0), (0, max(lengths) - mel.shape[1]))) for mel in mels])
        return {
            "audio_values": torch.from_numpy(values),
            "audio_lens": lengths,
            "audio_token_len": [-(-length // (ENCODER_STRIDE * self.stack_factor)) for length in lengths],
            "audio_batch_size": [len(mels)],
            "audio_num_chunks": [len(chunks) for chunks in pieces],
        }

    @staticmethod
    def checked(wave):
        """A waveform as float32. Raises ValueError for anything but `(samples,)` floats within about [-1, 1]."""
        wave = np.asarray(wave)
        if wave.ndim != 1 or wave.dtype.kind != "f" or not wave.size:
            raise ValueError(f"a recording is float samples (samples,) in [-1, 1], not {wave.dtype} of the shape {wave.shape}")
        if not np.isfinite(wave).all() or np.abs(wave).max() > LARGEST_SAMPLE:
            raise ValueError(
                "a recording holds samples that are not finite or far beyond 1: divide integers by their full scale"
            )
        return wave.astype(np.float32)

    def features(self, wave):
        """Log-mel features `(mels, ceil(samples / 160))`."""
        frames = max(1, -(-len(wave) // HOP))
        padded = np.pad(wave, (0, frames * HOP - len(wave) + SILENCE))
        extracted = self.audio_processor(padded, sampling_rate=16_000, padding=False, truncation=False, return_tensors="np")
        return extracted["input_features"][0, :, :frames]

    def read(self, text, counts, token_lengths):
        """Token ids, and the index of the first token of each chunk."""
        first, *others = text.split(AUDIO_TOKEN)
        if len(others) != len(counts):
            raise ValueError(f"{len(others)} {AUDIO_TOKEN} in the text and {len(counts)} recordings")
        ids, starts, lengths = self.ids(first), [], iter(token_lengths)
        for count, after in zip(counts, others, strict=True):
            for _ in range(count):
                starts.append(len(ids))
                ids += [self.tokenizer.convert_tokens_to_ids(self.audio_token_replacement)] * next(lengths)
            ids += self.ids(after)
        return {"input_ids": [ids], "attention_mask": [[1] * len(ids)], **({"audio_token_start_idx": starts} if starts else {})}

    def ids(self, text):
        """Token ids of a stretch of text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    @property
    def model_input_names(self):
        """Names of the model's inputs."""
        return ["input_ids", "attention_mask", "audio_values", "audio_lens", "audio_token_len", "audio_token_start_idx"]
