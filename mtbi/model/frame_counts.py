"""How many LLM positions an utterance takes, from configurations alone: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from mtbi import plugins
from mtbi.errors import UserError
from mtbi.recipe import CHOICES, AdapterConfig, EncoderConfig, ModelConfig

if TYPE_CHECKING:
    import torch

Lengths = TypeVar("Lengths", int, np.ndarray)
Stages = tuple[tuple[int, int], ...]  #: (kernel, stride) of each stage of an encoder
HOP_SAMPLES = 160
#: The demo encoder and Whisper: log-mel every 10 ms, then stride-2 convolutions padded so that each rounds up.
DEMO_STAGES = ((1, HOP_SAMPLES), (1, 2), (1, 2))
WHISPER_STAGES = ((1, HOP_SAMPLES), (1, 2))
CONVOLUTIONAL = ("wav2vec2", "hubert", "wavlm")
PLUGIN = "plugin:"


class EncoderPlugin(Protocol):
    """What an entry point of the group `mtbi.encoders` names: a module or a class with these two functions."""

    def stages(self, config: EncoderConfig, /) -> tuple[Stages, int | None]:
        """Stages, and the longest clip in samples (None = any). Reads no weights."""
        ...

    def build(self, config: EncoderConfig, dtype: torch.dtype, /) -> torch.nn.Module:
        """As `mtbi.model.encoders.build.build_encoder`: `forward(waveforms, lengths)` and `width`; parameters in `dtype`."""
        ...


@dataclass(frozen=True)
class FrameGeometry:
    """Lengths of encoder and adapter outputs, from lengths in samples at 16 kHz (whole numbers or numpy arrays of them)."""

    stages: Stages
    stack: int  #: encoder frames an adapter window
    queries: int = 1  #: adapter frames a window
    max_samples: int | None = None  #: longest clip that the encoder takes

    @classmethod
    def from_config(cls, model: ModelConfig) -> FrameGeometry:
        """Raises UserError when the encoder's configuration cannot be read or its family is not supported."""
        stages, longest = encoder_stages(model.encoder, model.trust_remote_code)
        return cls(stages, model.adapter.stack, adapter_queries(model.adapter), longest)

    @property
    def min_samples(self) -> int:
        """Samples that give one encoder frame; shorter clips are padded to it."""
        field = 1
        for kernel, stride in reversed(self.stages):
            field = (field - 1) * stride + kernel
        return field

    @property
    def samples_per_frame(self) -> float:
        """Distance between two adapter frames."""
        return float(np.prod([stride for _, stride in self.stages])) * self.stack / self.queries

    def encoder_frames(self, samples: Lengths) -> Lengths:
        """Encoder frames of clips of so many samples; at least 1."""
        frames = np.maximum(samples, self.min_samples)
        for kernel, stride in self.stages:
            frames = (frames - kernel) // stride + 1
        return int(frames) if isinstance(samples, int) else frames

    def frames(self, samples: Lengths) -> Lengths:
        """Adapter frames, that is LLM positions, of clips of so many samples; at least 1."""
        return -(-self.encoder_frames(samples) // self.stack) * self.queries


def adapter_queries(adapter: AdapterConfig) -> int:
    """Adapter frames for each window of `stack` encoder frames: of the shipped kinds, only `qformer` makes more than one."""
    shipped = adapter.kind in CHOICES["model.adapter.kind"]
    return 1 if shipped and adapter.kind != "qformer" else adapter.queries


def encoder_plugin(encoder: EncoderConfig) -> tuple[EncoderPlugin, EncoderConfig] | None:
    """The installed encoder of a path `plugin:NAME` or `plugin:NAME:WEIGHTS`, and its settings with WEIGHTS as the path.

    None for another path. Raises UserError where no installed package has it.
    """
    if not encoder.path.startswith(PLUGIN):
        return None
    name, _, weights = encoder.path.removeprefix(PLUGIN).partition(":")
    return plugins.find(plugins.ENCODERS, name, {}, "model.encoder.path: plugin"), replace(encoder, path=weights)


def encoder_stages(encoder: EncoderConfig, trust_remote_code: bool = False) -> tuple[Stages, int | None]:
    """Stages, and the longest clip in samples (None = any). Raises UserError for other families."""
    if encoder.path == "demo":
        return DEMO_STAGES, None
    if (found := encoder_plugin(encoder)) is not None:
        plugin, settings = found
        return plugin.stages(settings)
    config = read_encoder_config(encoder, trust_remote_code)
    if config.model_type == "whisper":
        return WHISPER_STAGES, config.max_source_positions * 2 * HOP_SAMPLES
    return tuple(zip(config.conv_kernel, config.conv_stride, strict=True)), None


def read_encoder_config(encoder: EncoderConfig, trust_remote_code: bool = False):
    """The transformers configuration of a supported encoder; raises UserError otherwise."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(encoder.path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.encoder.path: cannot read the configuration of {encoder.path!r}: {error}") from error
    if config.model_type not in ("whisper", *CONVOLUTIONAL):
        supported = ", ".join(("demo", "whisper", *CONVOLUTIONAL, f"{PLUGIN}NAME"))
        raise UserError(f"model.encoder.path: {encoder.path!r} is of type {config.model_type!r}; supported: {supported}")
    return config
