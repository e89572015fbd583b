"""How many LLM positions an utterance takes, from configurations alone: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mtbi.model.encoders.build import encoder_stages
from mtbi.model.encoders.protocol import EncoderPlugin, Stages, count_frames, min_samples
from mtbi.recipe import CHOICES, AdapterConfig, ModelConfig

__all__ = ["EncoderPlugin", "FrameGeometry", "Stages", "adapter_queries"]
Samples = TypeVar("Samples", int, np.ndarray)


@dataclass(frozen=True)
class FrameGeometry:
    """Lengths of encoder and adapter outputs, from lengths in samples at 16 kHz (whole numbers or numpy arrays of them)."""

    stages: Stages
    stack: int  #: encoder frames in an adapter window
    queries: int = 1  #: LLM positions for each window
    max_samples: int | None = None  #: longest clip that the encoder takes

    @classmethod
    def from_config(cls, model: ModelConfig) -> FrameGeometry:
        """Raises UserError when the encoder's configuration cannot be read or its family is not supported."""
        stages, longest = encoder_stages(model.encoder, model.trust_remote_code)
        return cls(stages, model.adapter.stack, adapter_queries(model.adapter), longest)

    @property
    def min_samples(self) -> int:
        """Samples that give one encoder frame; shorter clips are padded to it."""
        return min_samples(self.stages)

    @property
    def samples_per_frame(self) -> float:
        """Distance between two adapter frames."""
        return self.samples_per_encoder_frame * self.stack / self.queries

    @property
    def samples_per_encoder_frame(self) -> float:
        """Distance between two encoder frames."""
        return float(np.prod([stride for _, stride in self.stages]))

    def encoder_frames(self, samples: Samples) -> Samples:
        """Encoder frames of clips of so many samples; at least 1."""
        frames = count_frames(np.maximum(samples, self.min_samples), self.stages)
        return int(frames) if isinstance(samples, int) else frames

    def frames(self, samples: Samples) -> Samples:
        """Adapter frames, that is LLM positions, of clips of so many samples; at least 1."""
        return -(-self.encoder_frames(samples) // self.stack) * self.queries


def adapter_queries(adapter: AdapterConfig) -> int:
    """LLM positions for each window of `stack` encoder frames: of the shipped kinds, only `qformer` makes more than one."""
    shipped = adapter.kind in CHOICES["model.adapter.kind"]
    return 1 if shipped and adapter.kind != "qformer" else adapter.queries
