"""Augmentation: random changes of the sound that the model trains on (`augment` in the recipe).

Only the loader of training has it. Evaluation, sample dialogues, the solved start, exports and all use of a run never do. Each
draw depends on the recipe's seed, the epoch and the utterance alone, and on how often that epoch has given the utterance
before. So processes, micro-batches, threads and a restart do not change it, and each reading of an utterance has its own.

Masks are those of SpecAugment (Park et al. 2019, arXiv 1904.08779), without its time warping, on the encoder's output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.distortions import Distortions
from mtbi.batches.draw import Geometry, Group
from mtbi.recipe import AugmentConfig, Recipe
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance

MASKS = 3  # distinguishes these draws from the plan's, which end in 1, and from the solved start's, which end in 2
CHANNEL_PARTS = 1024  # equal parts of an encoder's width, in which masks of channels are drawn: the width is not known here


@dataclass(frozen=True)
class Mask:
    """What is hidden of a clip's features."""

    frames: np.ndarray  #: (encoder frames,) bool
    channels: np.ndarray  #: (CHANNEL_PARTS,) bool


@dataclass(frozen=True)
class Augmentation:
    """Draws the changes of each utterance, by the settings of a recipe."""

    config: AugmentConfig
    seed: int
    geometry: Geometry
    distortions: Distortions | None = None  #: of the sound

    @classmethod
    def of(cls, recipe: Recipe, geometry: Geometry, shards: Shards) -> Augmentation | None:
        """The augmentation of a recipe for its training shards; None where all of it is off.

        Raises UserError for settings that contradict each other, and for recordings that cannot be opened.
        """
        config, distortions = recipe.augment, Distortions.of(recipe, shards)
        on = config.time_masks or config.channel_masks or distortions
        return cls(config, recipe.seed, geometry, distortions) if on else None

    @property
    def masks_features(self) -> bool:
        """Whether anything of the encoder's output is hidden."""
        return bool(self.config.time_masks or self.config.channel_masks)

    def rng(self, group: Group, purpose: int, part: int = 0) -> np.random.Generator:
        """The random numbers of one reading of an utterance, for a purpose above 2 and a part of the utterance."""
        return np.random.default_rng([self.seed, group.epoch, group.utterance, group.occurrence, part, purpose])

    def heard(self, stored: StoredUtterance, group: Group) -> StoredUtterance:
        """An utterance with its sound as this reading has it. Raises as `Distortions` does."""
        if self.distortions is None or not len(stored.waveform):
            return stored
        return replace(stored, waveform=self.distortions(stored.waveform, group.utterance, partial(self.rng, group)))

    def mask(self, group: Group, part: int, frames: int) -> Mask:
        """The mask of a clip of so many encoder frames. It is clip `part` of its utterance."""
        config, rng = self.config, self.rng(group, MASKS, part)
        longest = config.time_mask_seconds * SAMPLE_RATE / self.geometry.samples_per_encoder_frame
        widest = int(min(longest, config.time_mask_share * frames))
        parts = int(config.channel_mask_share * CHANNEL_PARTS)
        return Mask(
            stretches(frames, config.time_masks, widest, rng),
            stretches(CHANNEL_PARTS, config.channel_masks, parts, rng),
        )

    def masks(self, clips: list[np.ndarray], owners: list[tuple[Group, int]], encoded: bool) -> list[Mask]:
        """The masks of clips: sound `(samples,)`, or features `(frames, width)` where they are `encoded`. None if they are off.

        `owners` are the group of each clip, and the number of the clip in it.
        """
        if not self.masks_features:
            return []
        counts = [len(clip) if encoded else int(self.geometry.encoder_frames(len(clip))) for clip in clips]
        return [self.mask(group, part, frames) for (group, part), frames in zip(owners, counts, strict=True)]

    def __str__(self) -> str:
        config, parts = self.config, []
        if config.time_masks:
            longest = f"{config.time_mask_seconds:g} s and {config.time_mask_share:.0%}"
            parts.append(f"{config.time_masks} masks of at most {longest} of an utterance")
        if config.channel_masks:
            parts.append(f"{config.channel_masks} masks of at most {config.channel_mask_share:.0%} of the channels")
        return "; ".join([*parts, *([str(self.distortions)] if self.distortions else [])])


def stretches(length: int, count: int, widest: int, rng: np.random.Generator) -> np.ndarray:
    """`(length,)` bool: `count` stretches at random places, which may overlap. Their widths are drawn from 0 to `widest`."""
    hidden = np.zeros(length, bool)
    for _ in range(count):
        width = int(rng.integers(0, widest, endpoint=True))
        start = int(rng.integers(0, length - width, endpoint=True))
        hidden[start : start + width] = True
    return hidden
