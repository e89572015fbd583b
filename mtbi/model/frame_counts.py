"""How many LLM positions an utterance takes, from configurations alone: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mtbi.model.encoders.build import encoder_stages
from mtbi.model.encoders.protocol import EncoderPlugin, Stages, count_frames, min_samples
from mtbi.recipe import CHOICES, AdapterConfig, ModelConfig

__all__ = ["EncoderPlugin", "FrameGeometry", "Stages", "adapter_queries", "adapter_stack"]
CLIP_QFORMER = "clip-qformer"  #: the kind of adapter whose queries read the whole clip
Samples = TypeVar("Samples", int, np.ndarray)


@dataclass(frozen=True)
class FrameGeometry:
    """Lengths of encoder and adapter outputs, from lengths in samples at 16 kHz (whole numbers or numpy arrays of them)."""

    stages: Stages
    stack: int  #: encoder frames in an adapter window; 0 = the whole clip is one window
    queries: int = 1  #: LLM positions for each window
    max_samples: int | None = None  #: longest clip that the encoder takes

    @classmethod
    def from_config(cls, model: ModelConfig) -> FrameGeometry:
        """Raises UserError when the encoder's configuration cannot be read or its family is not supported."""
        stages, longest = encoder_stages(model.encoder, model.trust_remote_code)
        return cls(stages, adapter_stack(model.adapter), adapter_queries(model.adapter), longest)

    @property
    def follows_time(self) -> bool:
        """Whether LLM positions stand for stretches of the clip. If not, each clip takes the same number of them."""
        return self.stack > 0

    @property
    def min_samples(self) -> int:
        """Samples that give one encoder frame; shorter clips are padded to it."""
        return min_samples(self.stages)

    @property
    def samples_per_frame(self) -> float:
        """Distance between two adapter frames; 0 where they do not follow time."""
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
        frames = self.encoder_frames(samples)
        return -(-frames // (self.stack or frames)) * self.queries


def adapter_stack(adapter: AdapterConfig) -> int:
    """Encoder frames in a window of the adapter; 0 = the whole clip is one window."""
    return 0 if adapter.kind == CLIP_QFORMER else adapter.stack


def adapter_queries(adapter: AdapterConfig) -> int:
    """LLM positions for each window: of the shipped kinds, only those with queries make more than one."""
    shipped = adapter.kind in CHOICES["model.adapter.kind"]
    return 1 if shipped and adapter.kind not in ("qformer", CLIP_QFORMER) else adapter.queries
