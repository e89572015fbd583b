"""The section `augment`: random changes of the sound in training."""

from __future__ import annotations

from dataclasses import dataclass

from mtbi.recipe.fields import setting


@dataclass
class AugmentConfig:
    """Random changes of the sound, in training steps only, drawn anew each time that an utterance is read; all off.

    The lengths of masks are those of SpecAugment's policy SM (Park et al. 2019, table 1).
    """

    time_masks: int = setting(0, "stretches of an utterance that the adapter does not hear; 0 = none")
    time_mask_seconds: float = setting(0.7, "longest such stretch; the length is drawn from 0 up")
    time_mask_share: float = setting(0.2, "largest share of an utterance that one such stretch takes", maximum=1)
    channel_masks: int = setting(0, "blocks of the encoder's channels that the adapter does not hear; 0 = none")
    channel_mask_share: float = setting(0.2, "largest share of the channels in such a block; drawn from 0 up", maximum=1)
