"""Speech encoders behind one interface: waveforms at 16 kHz in, features and their lengths out.

Features are computed on the device, in float32, as the encoder's own feature extractor does. Every clip is encoded as if it
were alone: padding is masked wherever a layer could see it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.errors import UserError
from mtbi.model.adapter import frame_mask
from mtbi.model.frame_counts import HOP_SAMPLES, FrameGeometry, Stages, encoder_plugin, read_encoder_config
from mtbi.recipe import EncoderConfig

FFT_SAMPLES = 400


class LogMel(nn.Module):
    """Whisper's log-mel features (arXiv 2212.04356) of the clip itself, without the padding to 30 seconds."""

    filters: Tensor
    window: Tensor

    def __init__(self, filters: Tensor) -> None:
        """`filters` is (frequencies, mels)."""
        super().__init__()
        self.register_buffer("filters", filters.float(), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT_SAMPLES), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` to `(clips, mels, frames)`, zero beyond the lengths, which come back in frames."""
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


class Whisper(nn.Module):
    """A Whisper encoder on clips of any length up to its own 30 seconds."""

    def __init__(self, encoder: Any, filters: Tensor) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.features = LogMel(filters)
        self.width: int = encoder.config.d_model
        self.max_frames: int = encoder.config.max_source_positions

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` and lengths in samples to `(clips, frames, width)` and lengths in frames.

        Raises UserError for a clip longer than the positions that the encoder knows.
        """
        mels, frames = self.features(waveforms, lengths)
        hidden = functional.gelu(self.encoder.conv1(mels.to(next(self.encoder.conv1.parameters()).dtype)))
        hidden = hidden * frame_mask(frames, hidden.shape[2])[:, None]
        hidden = functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        if hidden.shape[1] > self.max_frames:
            seconds = self.max_frames * 2 * HOP_SAMPLES / 16_000
            raise UserError(
                f"Whisper hears at most {seconds:g} seconds at once, a clip is longer; lower plan.max_audio_seconds"
            )
        frames = -(-frames // 2)
        hidden = hidden + self.encoder.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        mask = frame_mask(frames, hidden.shape[1])
        unseen = hidden.new_zeros(len(mask), 1, 1, mask.shape[1]).masked_fill(~mask[:, None, None], -torch.inf)
        unseen = unseen.expand(-1, -1, mask.shape[1], -1)
        for layer in self.encoder.layers:
            out = layer(hidden, attention_mask=unseen, layer_head_mask=None)  # the head mask is required by transformers 4
            hidden = out[0] if isinstance(out, tuple) else out
        return self.encoder.layer_norm(hidden) * mask[..., None], frames


class MaskedGroupNorm(nn.GroupNorm):
    """A group norm over time, one group a channel, whose statistics leave padding out. Set `lengths` before each call."""

    lengths: Tensor  #: (clips,) frames

    def forward(self, hidden: Tensor) -> Tensor:
        """`(clips, channels, frames)`."""
        mask = frame_mask(self.lengths, hidden.shape[2])[:, None]
        count = self.lengths[:, None, None]
        mean = (hidden.float() * mask).sum(2, keepdim=True) / count
        centred = (hidden.float() - mean) * mask
        variance = centred.square().sum(2, keepdim=True) / count
        normal = (centred * (variance + self.eps).rsqrt()).to(hidden.dtype)
        return normal * self.weight[:, None] + self.bias[:, None]


class Convolutional(nn.Module):
    """wav2vec 2.0, HuBERT and WavLM."""

    def __init__(self, model: Any, normalise: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.normalise = normalise
        self.width: int = model.config.hidden_size
        stages = tuple(zip(model.config.conv_kernel, model.config.conv_stride, strict=True))
        self.geometry = FrameGeometry(stages, stack=1)
        first = model.feature_extractor.conv_layers[0]
        if model.config.feat_extract_norm == "group":
            norm = MaskedGroupNorm(first.layer_norm.num_groups, first.layer_norm.num_channels)
            norm.weight, norm.bias = first.layer_norm.weight, first.layer_norm.bias
            first.layer_norm = norm

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` and lengths in samples to `(clips, frames, width)` and lengths in frames."""
        shortest = self.geometry.min_samples
        waveforms = functional.pad(waveforms.float(), (0, max(0, shortest - waveforms.shape[1])))
        lengths = lengths.clamp(min=shortest)
        mask = frame_mask(lengths, waveforms.shape[1])
        if self.normalise:
            mean = (waveforms * mask).sum(1, keepdim=True) / lengths[:, None]
            variance = ((waveforms - mean).square() * mask).sum(1, keepdim=True) / lengths[:, None]
            waveforms = (waveforms - mean) * (variance + 1e-7).rsqrt()
        norm = getattr(self.model.feature_extractor.conv_layers[0], "layer_norm", None)
        if isinstance(norm, MaskedGroupNorm):
            kernel, stride = self.geometry.stages[0]
            norm.lengths = (lengths - kernel) // stride + 1
        dtype = next(self.model.feature_extractor.parameters()).dtype
        hidden = self.model((waveforms * mask).to(dtype), attention_mask=mask.long()).last_hidden_state
        frames = lengths
        for kernel, stride in self.geometry.stages:
            frames = (frames - kernel) // stride + 1
        return hidden * frame_mask(frames, hidden.shape[1])[..., None], frames


def build_encoder(
    config: EncoderConfig, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> nn.Module:
    """A pretrained encoder: `forward(waveforms (clips, samples), lengths (clips,))` to features and lengths, and `width`.

    Layers above `config.layer` are dropped; a final norm of the family stays. Raises UserError for other families, and for an
    installed encoder whose outputs are not those that it announces.
    """
    if config.path == "demo":
        from mtbi.demo.encoder import DemoEncoder

        demo = DemoEncoder.from_pretrained()
        demo.layers.layers = _keep(demo.layers.layers, config)
        for parameter in demo.parameters():  # not the filters: features stay in float32
            parameter.data = parameter.data.to(dtype)
        return demo.to(device)
    if (found := encoder_plugin(config)) is not None:
        plugin, settings = found
        encoder = plugin.build(settings, dtype).to(device).eval()
        check_frames(encoder, plugin.stages(settings)[0], config.path, device)
        return encoder
    return _pretrained(config, dtype, trust_remote_code).to(device)


def set_trainable(encoder: nn.Module, on: bool) -> None:
    """Whether an encoder's own weights train. Whisper's sinusoidal positions never do: they are constants, not weights."""
    encoder.requires_grad_(on)
    if isinstance(encoder, Whisper):
        encoder.encoder.embed_positions.requires_grad_(False)


@torch.no_grad()
def check_frames(encoder: Any, stages: Stages, path: str, device: torch.device) -> None:
    """Encode three clips. Raises UserError where frames or width are not those of `stages` and `encoder.width`."""
    lengths = torch.tensor([1, 4321, 16_000])
    waveforms = torch.linspace(-0.1, 0.1, 16_000) * (torch.arange(16_000) < lengths[:, None])
    features, frames = encoder(waveforms.to(device), lengths.to(device))
    wanted = FrameGeometry(stages, stack=1).encoder_frames(lengths.numpy()).tolist()
    made = frames.tolist()
    if made != wanted or tuple(features.shape) != (3, wanted[-1], encoder.width):
        raise UserError(
            f"model.encoder.path: {path!r} makes {made} frames, {tuple(features.shape)}, of {lengths.tolist()} samples; "
            f"its stages say {wanted}, its width is {encoder.width} (docs/plugins.md)"
        )


def _pretrained(config: EncoderConfig, dtype: torch.dtype, trust_remote_code: bool) -> Whisper | Convolutional:
    from transformers import AutoModel

    settings = read_encoder_config(config, trust_remote_code)
    settings.apply_spec_augment, settings.layerdrop = False, 0.0
    try:
        model = AutoModel.from_pretrained(config.path, config=settings, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.encoder.path: cannot load {config.path!r}: {error}") from error
    if settings.model_type == "whisper":
        encoder = model.encoder
        encoder.layers = _keep(encoder.layers, config)
        return Whisper(encoder, mel_filters(settings.num_mel_bins, config.path))
    model.encoder.layers = _keep(model.encoder.layers, config)
    return Convolutional(model, _normalises(config.path))


def _keep(layers: Any, config: EncoderConfig) -> nn.ModuleList:
    """The layers up to `config.layer`."""
    count = config.layer if config.layer >= 0 else len(layers) + 1 + config.layer
    if not 0 <= count <= len(layers):
        raise UserError(f"model.encoder.layer={config.layer}: {config.path!r} has layers 0 to {len(layers)}")
    return layers[:count]


def mel_filters(mels: int, path: str = "") -> Tensor:
    """Whisper's `(frequencies, mels)`: those of the model at `path`, or where it brings none, of that number of mels."""
    from transformers import WhisperFeatureExtractor

    try:
        extractor = WhisperFeatureExtractor.from_pretrained(path) if path else WhisperFeatureExtractor(feature_size=mels)
    except OSError:  # a folder with weights only
        extractor = WhisperFeatureExtractor(feature_size=mels)
    return torch.as_tensor(extractor.mel_filters)


def _normalises(path: str) -> bool:
    from transformers import Wav2Vec2FeatureExtractor

    try:
        return bool(Wav2Vec2FeatureExtractor.from_pretrained(path).do_normalize)
    except OSError:
        return True
