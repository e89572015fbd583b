"""Whisper's encoder (arXiv 2212.04356) on clips of any length up to its own 30 seconds, without padding to 30 seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.errors import UserError
from mtbi.model.encoders.pretrained import PretrainedFamily, from_architecture, keep_layers, output_layers
from mtbi.model.encoders.protocol import (
    SAMPLE_RATE,
    Architecture,
    ComputedFeatures,
    SpeechEncoder,
    Stages,
    frame_mask,
)
from mtbi.recipe import EncoderConfig

FFT_SAMPLES = 400
HOP_SAMPLES = 160
#: Log-mel frames every 10 ms, then a convolution of stride 2 that is padded so that its output rounds up.
WHISPER_STAGES: Stages = ((1, HOP_SAMPLES), (1, 2))


class LogMel(ComputedFeatures):
    """Whisper's log-mel features of the clip itself."""

    filters: Tensor
    window: Tensor

    def __init__(self, filters: Tensor) -> None:
        """`filters` is (frequencies, mels)."""
        super().__init__()
        self.register_buffer("filters", filters.float(), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT_SAMPLES), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` to `(clips, mels, frames)`, zero beyond each clip's end, and the lengths in frames."""
        frames = -(-lengths // HOP_SAMPLES)
        longest = -(-waveforms.shape[1] // HOP_SAMPLES)
        # Zeros after the clip, as in Whisper's padding; enough of them that the reflection at the end is never seen.
        padded = functional.pad(waveforms.float(), (0, 2 * FFT_SAMPLES))
        spectrum = torch.stft(padded, FFT_SAMPLES, HOP_SAMPLES, window=self.window, return_complex=True)
        energy = self.filters.T @ spectrum[..., :longest].abs().square()
        mask = frame_mask(frames, longest)[:, None]
        mels = energy.clamp(min=1e-10).log10()
        loudest = mels.masked_fill(~mask, -10).amax((1, 2), keepdim=True)
        return (torch.maximum(mels, loudest - 8) + 4) / 4 * mask, frames

    def fresh_buffers(self) -> Mapping[str, Tensor]:
        """Filters for the same number of mels, and the window."""
        return dict(LogMel(mel_filters(self.filters.shape[1])).named_buffers())


class Whisper(SpeechEncoder):
    """The encoder with its features. Padding is masked in every layer, so each clip is encoded as if it were alone."""

    def __init__(self, encoder: Any, filters: Tensor, chosen: Sequence[int] = ()) -> None:
        """The output are the hidden layers `chosen`, each after the final norm; without any it is the last one."""
        super().__init__()
        self.output_layers = tuple(chosen) or (len(encoder.layers),)
        self.encoder: Any = encoder
        self.features = LogMel(filters)
        self.width: int = encoder.config.d_model * len(self.output_layers)
        self.max_frames: int = encoder.config.max_source_positions

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` and lengths in samples to `(clips, frames, width)` and lengths in frames.

        Raises UserError for a clip with more frames than the encoder has positions.
        """
        mels, frames = self.features(waveforms, lengths)
        hidden = functional.gelu(self.encoder.conv1(mels.to(next(self.encoder.conv1.parameters()).dtype)))
        hidden = hidden * frame_mask(frames, hidden.shape[2])[:, None]
        hidden = functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        if hidden.shape[1] > self.max_frames:
            seconds = self.max_frames * 2 * HOP_SAMPLES / SAMPLE_RATE
            raise UserError(
                f"Whisper encodes at most {seconds:g} seconds at once, a clip is longer; lower plan.max_audio_seconds"
            )
        frames = -(-frames // 2)
        hidden = hidden + self.encoder.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        mask = frame_mask(frames, hidden.shape[1])
        unseen = hidden.new_zeros(len(mask), 1, 1, mask.shape[1]).masked_fill(~mask[:, None, None], -torch.inf)
        unseen = unseen.expand(-1, -1, mask.shape[1], -1)
        states = [hidden] if 0 in self.output_layers else []
        for number, layer in enumerate(self.encoder.layers, 1):
            out = layer(hidden, attention_mask=unseen, layer_head_mask=None)  # the head mask is required by transformers 4
            hidden = out[0] if isinstance(out, tuple) else out
            if number in self.output_layers:
                states.append(hidden)
        return torch.cat([self.encoder.layer_norm(state) for state in states], 2) * mask[..., None], frames

    def set_trainable(self, config: EncoderConfig) -> None:
        """The sinusoidal positions never train: they are constants."""
        super().set_trainable(config)
        self.encoder.embed_positions.requires_grad_(False)


def encoder_class() -> Any:
    """transformers' encoder, which leaves a decoder in the file and does not report it."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    ignored = [r"^(model\.)?decoder\.", r"^proj_out\."]
    return type("EncoderOfWhisper", (WhisperEncoder,), {"_keys_to_ignore_on_load_unexpected": ignored})


class WhisperFamily(PretrainedFamily):
    """Whisper models, of which the encoder alone is used."""

    def stages(self, config: EncoderConfig, /) -> tuple[Stages, int | None]:
        """The longest clip is the one that fills the encoder's positions."""
        return WHISPER_STAGES, self.settings(config).max_source_positions * 2 * HOP_SAMPLES

    def build(self, config: EncoderConfig, dtype: torch.dtype, /) -> nn.Module:
        """Layers above the highest output layer are dropped, the final norm stays. The decoder's weights are not read."""
        import transformers

        if transformers.__version__ < "5":  # its `key_mapping` does not find the encoder's weights
            encoder = self.load(config, dtype).encoder
        else:
            encoder = self.load(config, dtype, encoder_class(), key_mapping={r"^(model\.)?encoder\.": ""})
        chosen = output_layers(len(encoder.layers), config)
        encoder.layers = keep_layers(encoder.layers, config)
        return Whisper(encoder, mel_filters(encoder.config.num_mel_bins, config.path), chosen)

    def describe(self, config: EncoderConfig, /) -> Architecture:
        """Whisper's own configuration."""
        return self.settings_with_layers(config, "encoder_layers")

    def empty(self, architecture: Architecture, /) -> nn.Module:
        """The filters are zeros too: `restore_filters` computes them."""
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        sizes = from_architecture(architecture)
        filters = torch.zeros(FFT_SAMPLES // 2 + 1, sizes.num_mel_bins)
        return Whisper(WhisperEncoder(sizes), filters, architecture.get("output_layers", ()))


def mel_filters(mels: int, path: str = "") -> Tensor:
    """Whisper's `(frequencies, mels)`: those of the model at `path`, or without any the usual ones for this number of mels."""
    from transformers import WhisperFeatureExtractor

    try:
        extractor = WhisperFeatureExtractor.from_pretrained(path) if path else WhisperFeatureExtractor(feature_size=mels)
    except OSError:  # a folder with weights only
        extractor = WhisperFeatureExtractor(feature_size=mels)
    return torch.as_tensor(extractor.mel_filters)
