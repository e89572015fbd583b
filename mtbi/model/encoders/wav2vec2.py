"""wav2vec 2.0 (arXiv 2006.11477), HuBERT and WavLM: convolutions over samples, then transformer layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.model.encoders.pretrained import PretrainedFamily, from_architecture, keep_layers, output_layers
from mtbi.model.encoders.protocol import Architecture, SpeechEncoder, Stages, count_frames, frame_mask, min_samples
from mtbi.recipe import EncoderConfig


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


class Convolutional(SpeechEncoder):
    """The encoder behind its convolutions. Padding is masked, so each clip is encoded as if it were alone."""

    def __init__(self, model: Any, normalise: bool, chosen: Sequence[int] = ()) -> None:
        """`normalise` says whether each clip is scaled to mean 0 and variance 1 first.

        The output are the hidden layers `chosen`, each as if it were the last one; without any it is the last one.
        """
        super().__init__()
        self.model: Any = model
        self.normalise = normalise
        self.output_layers = tuple(chosen) or (len(model.encoder.layers),)
        self.width: int = model.config.hidden_size * len(self.output_layers)
        self.stages = stages_of(model.config)
        first = model.feature_extractor.conv_layers[0]
        if model.config.feat_extract_norm == "group":
            norm = MaskedGroupNorm(first.layer_norm.num_groups, first.layer_norm.num_channels)
            norm.weight, norm.bias = first.layer_norm.weight, first.layer_norm.bias
            first.layer_norm = norm

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` and lengths in samples to `(clips, frames, width)` and lengths in frames."""
        shortest = min_samples(self.stages)
        waveforms = functional.pad(waveforms.float(), (0, max(0, shortest - waveforms.shape[1])))
        lengths = lengths.clamp(min=shortest)
        mask = frame_mask(lengths, waveforms.shape[1])
        if self.normalise:
            mean = (waveforms * mask).sum(1, keepdim=True) / lengths[:, None]
            variance = ((waveforms - mean).square() * mask).sum(1, keepdim=True) / lengths[:, None]
            waveforms = (waveforms - mean) * (variance + 1e-7).rsqrt()
        norm = getattr(self.model.feature_extractor.conv_layers[0], "layer_norm", None)
        if isinstance(norm, MaskedGroupNorm):
            norm.lengths = count_frames(lengths, self.stages[:1])
        dtype = next(self.model.feature_extractor.parameters()).dtype
        hidden = self.hidden_layers((waveforms * mask).to(dtype), mask.long())
        frames = count_frames(lengths, self.stages)
        return hidden * frame_mask(frames, hidden.shape[1])[..., None], frames

    def hidden_layers(self, waveforms: Tensor, mask: Tensor) -> Tensor:
        """The output layers, side by side: `(clips, frames, width)`. `mask` `(clips, samples)` is 1 on the clips.

        They are read where the layers above them begin. Models of the `stable` kind normalise the last layer's output only, the
        others each layer's.
        """
        *below, _ = self.output_layers  # the highest is the model's own output
        states: list[Tensor] = []
        with ExitStack() as hooks:
            for number in below:
                layer = self.model.encoder.layers[number]
                hook = layer.register_forward_pre_hook(
                    lambda _, given, named: states.append(first_of(given, named)), with_kwargs=True
                )
                hooks.callback(hook.remove)
            last = self.model(waveforms, attention_mask=mask).last_hidden_state
        if self.model.config.do_stable_layer_norm:
            states = [self.model.encoder.layer_norm(state) for state in states]
        return torch.cat([*states, last], 2)


def first_of(given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a layer."""
    return given[0] if given else named["hidden_states"]


class Wav2Vec2Family(PretrainedFamily):
    """wav2vec 2.0, HuBERT and WavLM models."""

    def stages(self, config: EncoderConfig, /) -> tuple[Stages, int | None]:
        """Those of the convolutions; clips may have any length."""
        return stages_of(self.settings(config)), None

    def build(self, config: EncoderConfig, dtype: torch.dtype, /) -> nn.Module:
        """Layers above the highest output layer are dropped, the final norm of a family that has one stays."""
        model = self.load(config, dtype)
        chosen = output_layers(len(model.encoder.layers), config)
        model.encoder.layers = keep_layers(model.encoder.layers, config)
        return Convolutional(model, reads_normalised(config.path), chosen)

    def describe(self, config: EncoderConfig, /) -> Architecture:
        """The model's own configuration, and `normalise`."""
        return self.settings_with_layers(config, "num_hidden_layers") | {"normalise": reads_normalised(config.path)}

    def empty(self, architecture: Architecture, /) -> nn.Module:
        """Without random changes of the input in training."""
        from transformers import AutoModel

        sizes = {name: value for name, value in architecture.items() if name != "normalise"}
        model = AutoModel.from_config(from_architecture(sizes))
        return Convolutional(model, architecture.get("normalise", True), architecture.get("output_layers", ()))


def stages_of(settings: Any) -> Stages:
    """Kernel and stride of each convolution."""
    return tuple(zip(settings.conv_kernel, settings.conv_stride, strict=True))


def reads_normalised(path: str) -> bool:
    """Whether the model was trained on clips of mean 0 and variance 1."""
    from transformers import Wav2Vec2FeatureExtractor

    try:
        return bool(Wav2Vec2FeatureExtractor.from_pretrained(path).do_normalize)
    except OSError:  # a folder with weights only
        return True
