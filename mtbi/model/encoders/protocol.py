"""What a speech encoder is to the rest of mtbi: frames without weights, building, and a description to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mtbi.recipe import EncoderConfig

SAMPLE_RATE = 16_000
Stages = tuple[tuple[int, int], ...]  #: (kernel, stride) of each stage of an encoder, the first in samples
Architecture = dict[str, Any]  #: `model_type` and sizes of an encoder, as JSON holds them
Lengths = TypeVar("Lengths", int, np.ndarray, Tensor)


@dataclass(frozen=True)
class EncoderFacts:
    """What the recipe alone says about an encoder."""

    output_name: str  #: the same name means the same features
    sources: tuple[str, ...]  #: names or folders of the models whose weights it reads
    trainable: bool  #: whether any of its own weights train


class EncoderPlugin(Protocol):
    """What an entry point of the group `mtbi.encoders` names: a module or a class with these functions.

    `describe` and `empty`, as in `EncoderFamily`, are optional: with them the encoder can be exported with all weights.
    """

    def stages(self, config: EncoderConfig, /) -> tuple[Stages, int | None]:
        """Stages, and the longest clip in samples (None = any). Reads no weights."""
        ...

    def build(self, config: EncoderConfig, dtype: torch.dtype, /) -> nn.Module:
        """The encoder with its weights: parameters in `dtype`, and

        - `forward(waveforms, lengths)`: float32 `(clips, samples)` at 16 kHz and `(clips,)` lengths in samples to features
          `(clips, frames, width)`, zero beyond a clip's end, and `(clips,)` lengths in frames;
        - `width`;
        - `output_layers`, where `config.layers` is set: the numbers of the hidden layers side by side in the features.
        """
        ...


class EncoderFamily(EncoderPlugin, Protocol):
    """One kind of encoder. Shipped, miniature and installed encoders all come as one."""

    def facts(self, config: EncoderConfig, /) -> EncoderFacts:
        """What is known without reading a file of the model."""
        ...

    def describe(self, config: EncoderConfig, /) -> Architecture:
        """What `empty` builds, with the layers that `config.layer` keeps. Reads no weights.

        Raises UserError where only `build` can make the encoder.
        """
        ...

    def empty(self, architecture: Architecture, /) -> nn.Module:
        """The encoder as `build` makes it, without pretrained weights, on torch's default device."""
        ...


class Taps(NamedTuple):
    """The hidden layers of one encoder that stand side by side in its output."""

    layers: tuple[int, ...]  #: their numbers; 0 is the input of the first layer
    width: int  #: of each


class SpeechEncoder(nn.Module):
    """Base class of the shipped encoders. Installed ones need not have it: they get what it does by default."""

    width: int  #: size of a feature vector
    output_layers: tuple[int, ...]  #: the hidden layers that stand side by side in it, the lowest first
    takes_lora: bool = True  #: whether low-rank updates of its linear layers have an effect

    def set_trainable(self, config: EncoderConfig) -> None:
        """Let the encoder's own weights train, or freeze them, as the recipe says."""
        self.requires_grad_(config.trainable)


class ComputedFeatures(nn.Module):
    """Features computed by fixed filters, which are buffers in float32 and are not saved with the weights."""

    def fresh_buffers(self) -> Mapping[str, Tensor]:
        """The filters by name, computed again."""
        raise NotImplementedError


def taps_of(encoder: Any) -> dict[str, Taps]:
    """The layers in an encoder's output, by the encoder's name in `beside` (empty for the first), in the order of its width."""
    own: dict[str, Taps] | None = getattr(encoder, "taps", None)
    layers = getattr(encoder, "output_layers", (0,))
    return own or {"": Taps(tuple(layers), encoder.width // len(layers))}


def output_name(config: EncoderConfig) -> str:
    """The name of an encoder's output, from its path and layers."""
    layers = f" of layers {config.layers}" if config.layers else ""
    return f"{config.path} layer {config.layer}{layers}"


def frame_mask(lengths: Tensor, longest: int) -> Tensor:
    """`(clips, longest)`, true on the frames that exist."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def min_samples(stages: Stages) -> int:
    """Samples that give one frame; shorter clips are padded to it."""
    field = 1
    for kernel, stride in reversed(stages):
        field = (field - 1) * stride + kernel
    return field


def count_frames(samples: Lengths, stages: Stages) -> Lengths:
    """Frames of clips of so many samples, each at least `min_samples`."""
    frames = samples
    for kernel, stride in stages:
        frames = (frames - kernel) // stride + 1
    return frames
