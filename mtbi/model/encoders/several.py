"""Several encoders side by side: their features are concatenated, at the frames of the first one (`model.encoder.beside`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mtbi.errors import UserError
from mtbi.model.encoders.build import (
    SIDE_BY_SIDE,
    build_encoder,
    describe_encoder,
    empty_encoder,
    encoder_facts,
    encoder_stages,
    set_trainable,
)
from mtbi.model.encoders.protocol import Architecture, EncoderFacts, SpeechEncoder, Stages, frame_mask, taps_of
from mtbi.recipe import EncoderConfig


class SideBySide(SpeechEncoder):
    """One encoder, and others by name. Its width is the sum of theirs, its frames are those of the first."""

    def __init__(self, first: Any, beside: dict[str, Any]) -> None:
        super().__init__()
        self.first = first
        self.beside = nn.ModuleDict(beside)
        self.width = sum(encoder.width for encoder in (first, *beside.values()))
        self.taps = taps_of(first) | {
            f"{name}_{inner}" if inner else name: taps
            for name, encoder in beside.items()
            for inner, taps in taps_of(encoder).items()
        }
        self.takes_lora = all(getattr(encoder, "takes_lora", True) for encoder in (first, *beside.values()))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` and lengths in samples to `(clips, frames, width)` and lengths in frames."""
        features, frames = self.first(waveforms, lengths)
        columns = [features]
        for encoder in self.beside.values():
            other, count = encoder(waveforms, lengths)
            columns.append(at_frames(other.to(features.dtype), count, frames, features.shape[1]))
        return torch.cat(columns, dim=2), frames

    def set_trainable(self, config: EncoderConfig) -> None:
        """Each encoder by its own `trainable`."""
        set_trainable(self.first, config)
        for name, encoder in self.beside.items():
            set_trainable(encoder, config.beside[name])

    def train(self, mode: bool = True) -> SideBySide:
        """Frozen encoders stay in evaluation mode."""
        super().train(mode)
        for encoder in (self.first, *self.beside.values()):
            encoder.train(mode and any(parameter.requires_grad for parameter in encoder.parameters()))
        return self


def at_frames(features: Tensor, frames: Tensor, target: Tensor, longest: int) -> Tensor:
    """Features `(clips, n, width)` of `frames (clips,)` at `target (clips,)` frames: `(clips, longest, width)`, zero-padded.

    Both counts span the same clip, so the centre of each target frame falls between two frames, which are interpolated. Equal
    counts change nothing.
    """
    centres = torch.arange(longest, device=features.device) + 0.5
    position = (centres * (frames / target)[:, None] - 0.5).clamp(min=0).minimum((frames - 1)[:, None])
    before = position.floor().long()
    after = (before + 1).minimum((frames - 1)[:, None])
    left, right = (features.gather(1, index[..., None].expand(-1, -1, features.shape[2])) for index in (before, after))
    mixed = torch.lerp(left, right, (position - before)[..., None].to(features.dtype))
    return mixed * frame_mask(target, longest)[..., None]


class SideBySideFamily:
    """`model.encoder` with further encoders in `beside`, each of a family of its own."""

    def __init__(self, trust_remote_code: bool = False) -> None:
        self.trust = trust_remote_code

    def parts(self, config: EncoderConfig) -> list[EncoderConfig]:
        """The first encoder's settings without the others, and theirs. Raises UserError for a name that no module can have."""
        for name in config.beside:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise UserError(f"model.encoder.beside.{name}: give the encoder another name, of letters, digits and _")
        return [replace(config, beside={}), *config.beside.values()]

    def stages(self, config: EncoderConfig, /) -> tuple[Stages, int | None]:
        """The stages of the first encoder; the longest clip that all of them take."""
        lengths = [encoder_stages(part, self.trust) for part in self.parts(config)]
        limits = [longest for _, longest in lengths if longest is not None]
        return lengths[0][0], min(limits, default=None)

    def facts(self, config: EncoderConfig, /) -> EncoderFacts:
        """Names and sources of all of them; trainable if one is."""
        facts = [encoder_facts(part, self.trust) for part in self.parts(config)]
        sources = tuple(dict.fromkeys(source for fact in facts for source in fact.sources))
        return EncoderFacts(" + ".join(fact.output_name for fact in facts), sources, any(fact.trainable for fact in facts))

    def build(self, config: EncoderConfig, dtype: torch.dtype, /) -> nn.Module:
        """Each as it is built alone."""
        first, *others = [build_encoder(part, dtype, torch.device("cpu"), self.trust) for part in self.parts(config)]
        return SideBySide(first, dict(zip(config.beside, others, strict=True)))

    def describe(self, config: EncoderConfig, /) -> Architecture:
        """The description of each."""
        first, *others = [describe_encoder(part, self.trust) for part in self.parts(config)]
        return {"model_type": SIDE_BY_SIDE, "first": first, "beside": dict(zip(config.beside, others, strict=True))}

    def empty(self, architecture: Architecture, /) -> nn.Module:
        """Each as it was described."""
        beside = {name: empty_encoder(other) for name, other in architecture["beside"].items()}
        return SideBySide(empty_encoder(architecture["first"]), beside)
