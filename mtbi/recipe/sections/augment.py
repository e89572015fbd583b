"""The section `augment`: random changes of the sound in training."""

# ruff: noqa: RUF009  # `setting` copies lists and mappings
from __future__ import annotations

from dataclasses import dataclass

from mtbi.recipe.fields import setting


@dataclass
class AugmentConfig:
    """Random changes of the sound, in training steps only, drawn anew each time that an utterance is read; all off.

    The lengths of masks are those of SpecAugment's policy SM (Park et al. 2019, table 1). The levels of noise and babble, and
    the number of voices, are those of x-vectors (Snyder et al., ICASSP 2018).
    """

    time_masks: int = setting(0, "stretches of an utterance that the adapter does not hear; 0 = none")
    time_mask_seconds: float = setting(0.7, "longest such stretch; the length is drawn from 0 up")
    time_mask_share: float = setting(0.2, "largest share of an utterance that one such stretch takes", maximum=1)
    channel_masks: int = setting(0, "blocks of the encoder's channels that the adapter does not hear; 0 = none")
    channel_mask_share: float = setting(0.2, "largest share of the channels in such a block; drawn from 0 up", maximum=1)
    rooms: list[str] = setting([], "folders or manifests of rooms' impulse responses")
    room_probability: float = setting(0.0, "share of the utterances that sound as in one of these rooms", maximum=1)
    noise: list[str] = setting([], "folders or manifests of recordings of noise")
    noise_probability: float = setting(0.0, "share of the utterances with such noise", maximum=1)
    noise_snr_min: float = setting(0.0, "loudest noise: decibels of the speech above it; drawn per utterance", minimum=None)
    noise_snr_max: float = setting(15.0, "softest noise", minimum=None)
    babble_probability: float = setting(0.0, "share of the utterances with other utterances behind them", maximum=1)
    babble_voices_min: int = setting(3, "fewest utterances in the babble; drawn per utterance", minimum=1)
    babble_voices_max: int = setting(7, "most utterances in the babble", minimum=1)
    babble_snr_min: float = setting(13.0, "loudest babble: decibels of the speech above it; drawn per utterance", minimum=None)
    babble_snr_max: float = setting(20.0, "softest babble", minimum=None)
    telephone_probability: float = setting(
        0.0, "share of the utterances that sound as by telephone (300 to 3400 Hz, mu-law)", maximum=1
    )
    gain_probability: float = setting(0.0, "share of the utterances that become louder or softer", maximum=1)
    gain_db_min: float = setting(-10.0, "lowest gain in decibels; drawn per utterance", minimum=None)
    gain_db_max: float = setting(10.0, "highest gain in decibels; sound that would be clipped stays below that", minimum=None)
