"""Distortions of an utterance's sound in training: which ones, drawn from a recipe's settings (`augment`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtbi.audio import distort
from mtbi.batches.sound_set import SoundSet, repeated
from mtbi.errors import DamagedError, UserError
from mtbi.recipe import AugmentConfig, Recipe
from mtbi.shards.read import Shards

#: Each distortion has random numbers of its own, so that one does not change the draws of another. Masks have 3.
ROOM, NOISE, BABBLE, TELEPHONE, GAIN = range(4, 9)
LONGEST_RESPONSE_SECONDS = 20.0  #: a longer file is no impulse response
RANGES = ("noise_snr", "babble_voices", "babble_snr", "gain_db")

Random = Callable[[int], np.random.Generator]  #: the random numbers of one reading of an utterance, for a purpose


def switched_on(config: AugmentConfig) -> list[str]:
    """The names of the distortions that the settings switch on; masks are none."""
    return [name for name in ("room", "noise", "babble", "telephone", "gain") if getattr(config, f"{name}_probability")]


def check(config: AugmentConfig) -> None:
    """Raises UserError for settings that contradict each other."""
    for name in RANGES:
        low, high = getattr(config, f"{name}_min"), getattr(config, f"{name}_max")
        if low > high:
            raise UserError(f"augment.{name}_min is {low:g}, above augment.{name}_max, which is {high:g}")
    for name, paths in (("room", config.rooms), ("noise", config.noise)):
        if getattr(config, f"{name}_probability") and not paths:
            field = "rooms" if name == "room" else "noise"
            raise UserError(f"augment.{name}_probability is set, but augment.{field} names no folder of recordings")


@dataclass(frozen=True)
class Distortions:
    """Distorts utterances of shards."""

    config: AugmentConfig
    rooms: SoundSet
    noise: SoundSet
    shards: Shards
    skip_unreadable: bool  #: leave out a voice that is lost or damaged

    @classmethod
    def of(cls, recipe: Recipe, shards: Shards) -> Distortions | None:
        """Those of a recipe; None where there are none. Raises UserError as `check` and `SoundSet.of` do."""
        config, on = recipe.augment, switched_on(recipe.augment)
        check(config)
        rooms = SoundSet.of("augment.rooms", config.rooms if "room" in on else [], LONGEST_RESPONSE_SECONDS)
        noise = SoundSet.of("augment.noise", config.noise if "noise" in on else [])
        return cls(config, rooms, noise, shards, recipe.data.unreadable == "skip") if on else None

    def __call__(self, wave: np.ndarray, utterance: int, random: Random) -> np.ndarray:
        """The distorted waveform `(samples,)` of an utterance, of the same length and within [-1, 1].

        Raises UserError for a recording of noise or of a room that cannot be decoded, and as `Shards` does for a voice.
        """
        config = self.config
        if self._happens(rng := random(ROOM), config.room_probability):
            wave = distort.in_room(wave, self.rooms.draw(rng))
        if self._happens(rng := random(NOISE), config.noise_probability):
            snr = rng.uniform(config.noise_snr_min, config.noise_snr_max)
            wave = distort.with_noise(wave, self.noise.draw_piece(len(wave), rng), snr)
        if self._happens(rng := random(BABBLE), config.babble_probability):
            snr = rng.uniform(config.babble_snr_min, config.babble_snr_max)
            wave = distort.with_noise(wave, self.babble(utterance, len(wave), rng), snr)
        if self._happens(random(TELEPHONE), config.telephone_probability):
            wave = distort.by_telephone(wave)
        if self._happens(rng := random(GAIN), config.gain_probability):
            wave = distort.louder(wave, rng.uniform(config.gain_db_min, config.gain_db_max))
        return distort.unclipped(wave)

    def _happens(self, rng: np.random.Generator, probability: float) -> bool:
        return bool(rng.random() < probability)

    def babble(self, utterance: int, samples: int, rng: np.random.Generator) -> np.ndarray:
        """`(samples,)` of several other utterances at once, each as loud as the others. They may be of the same speaker.

        They come from the utterance's own shard, which is here already. Silence where that shard has no other sound.
        """
        total = np.zeros(samples, np.float32)
        sizes = np.cumsum(self.shards.index.shard_sizes)
        shard = int(np.searchsorted(sizes, utterance, side="right"))
        numbers = np.arange(sizes[shard - 1] if shard else 0, sizes[shard])
        numbers = numbers[(numbers != utterance) & (self.shards.index.utterances["samples"][numbers] > 0)]
        voices = int(rng.integers(self.config.babble_voices_min, self.config.babble_voices_max, endpoint=True))
        for number in rng.permutation(numbers)[:voices].tolist():
            place = float(rng.random())
            try:
                voice = self.shards[number].waveform
            except DamagedError:
                if self.skip_unreadable:
                    continue
                raise
            if (loudness := distort.rms(voice)) > distort.SILENT_RMS:
                total += repeated(voice, samples, place) / np.float32(loudness)
        return total

    @property
    def names(self) -> dict[str, list[str]]:
        """The names of all recordings, in order, by the recipe's field: what all processes must agree on."""
        return {recordings.field: list(recordings.names) for recordings in (self.rooms, self.noise)}

    def __str__(self) -> str:
        config = self.config
        parts = {
            "room": f"{len(self.rooms.files)} impulse responses",
            "noise": f"{config.noise_snr_min:g} to {config.noise_snr_max:g} dB of {len(self.noise.files)} recordings",
            "babble": f"{config.babble_voices_min} to {config.babble_voices_max} voices at {config.babble_snr_min:g} to "
            f"{config.babble_snr_max:g} dB",
            "telephone": f"{distort.TELEPHONE_BAND_HZ[0]:g} to {distort.TELEPHONE_BAND_HZ[1]:g} Hz",
            "gain": f"{config.gain_db_min:g} to {config.gain_db_max:g} dB",
        }
        shares = {name: getattr(config, f"{name}_probability") for name in parts}
        return "; ".join(f"{name} for {shares[name]:.0%} ({parts[name]})" for name in switched_on(config))
