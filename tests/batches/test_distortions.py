from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.audio import distort
from mtbi.batches import distortions
from mtbi.batches.distortions import Distortions
from mtbi.errors import DamagedError, UserError
from mtbi.recipe import AugmentConfig, Recipe
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance


@pytest.fixture
def shards(shard_folder: Path) -> Shards:
    return Shards(str(shard_folder))


@pytest.fixture
def sounds(tmp_path: Path) -> dict[str, list[str]]:
    """Folders of a noise and of an impulse response."""
    for name, wave in (("noise", np.random.default_rng(1).uniform(-0.5, 0.5, 8000)), ("rooms", 0.8 ** np.arange(400))):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "1.wav", wave, 16_000)
    return {name: [str(tmp_path / name)] for name in ("noise", "rooms")}


def make(shards: Shards, recipe: Recipe, **settings: object) -> Distortions:
    made = Distortions.of(replace(recipe, augment=AugmentConfig(**settings)), shards)  # type: ignore[arg-type]
    assert made
    return made


def random(seed: int = 0) -> distortions.Random:
    return lambda purpose: np.random.default_rng([seed, purpose])


def test_all_together_keep_the_length_and_stay_within_limits(shards: Shards, small_recipe: Recipe, sounds: dict) -> None:
    shares = {f"{name}_probability": 1.0 for name in ("room", "noise", "babble", "telephone", "gain")}
    made = make(shards, small_recipe, **sounds, **shares, gain_db_min=20.0, gain_db_max=30.0)
    wave = shards[3].waveform
    before = wave.copy()
    heard = made(wave, 3, random())
    assert heard.shape == wave.shape
    assert heard.dtype == np.float32
    assert np.abs(heard).max() == 1
    assert np.array_equal(wave, before)
    assert np.array_equal(heard, made(wave, 3, random()))
    assert not np.array_equal(heard, made(wave, 3, random(1)))
    assert str(made).startswith("room for 100% (1 impulse responses); noise for 100% (0 to 15 dB of 1 recordings)")


@pytest.mark.parametrize("kind", ["noise", "babble"])
def test_levels_are_drawn_from_the_whole_range(shards: Shards, small_recipe: Recipe, sounds: dict, kind: str) -> None:
    settings = {f"{kind}_probability": 1.0, f"{kind}_snr_min": 5.0, f"{kind}_snr_max": 9.0}
    made, wave = make(shards, small_recipe, **sounds, **settings), 0.3 * shards[3].waveform
    noises = [made(wave, 3, random(seed)) - wave for seed in range(40)]
    levels = [20 * np.log10(distort.rms(wave) / distort.rms(noise)) for noise in noises]
    assert 4.99 < min(levels) < 5.5
    assert 8.5 < max(levels) < 9.01


def test_each_happens_in_its_share_of_the_utterances(shards: Shards, small_recipe: Recipe) -> None:
    made, wave = make(shards, small_recipe, gain_probability=0.3, gain_db_min=-20.0, gain_db_max=-10.0), shards[3].waveform
    changed = [made(wave, 3, random(seed)) is not wave for seed in range(400)]
    assert 0.24 < np.mean(changed) < 0.36


def test_babble_is_other_utterances_of_the_same_shard(shards: Shards, small_recipe: Recipe) -> None:
    made = make(shards, small_recipe, babble_probability=1.0, babble_voices_min=2, babble_voices_max=4)
    sizes = np.cumsum(shards.index.shard_sizes)
    assert len(sizes) > 2
    read: list[int] = []

    class Listening(Shards):
        def __getitem__(self, number: int) -> StoredUtterance:
            read.append(number)
            return super().__getitem__(number)

    shards.__class__ = Listening
    counts = set()
    for utterance in (0, int(sizes[0]), int(sizes[1]) - 1):
        for seed in range(12):
            read.clear()
            made.babble(utterance, 4000, np.random.default_rng(seed))
            counts.add(len(read))
            assert utterance not in read
            assert len(set(read)) == len(read)
            assert {int(np.searchsorted(sizes, number, side="right")) for number in read} == {
                int(np.searchsorted(sizes, utterance, side="right"))
            }
    assert counts == {2, 3, 4}


def test_a_lost_voice_stops_the_run_or_is_left_out(shards: Shards, small_recipe: Recipe) -> None:
    settings = {"babble_probability": 1.0, "babble_voices_min": 3, "babble_voices_max": 3}
    stopping = make(shards, small_recipe, **settings)
    skipping = make(shards, replace(small_recipe, data=replace(small_recipe.data, unreadable="skip")), **settings)
    number = count()

    class Damaged(Shards):
        def __getitem__(self, utterance: int) -> StoredUtterance:
            if next(number) % 3 == 0:
                raise DamagedError("lost")
            return super().__getitem__(utterance)

    shards.__class__ = Damaged
    with pytest.raises(DamagedError):
        stopping.babble(3, 4000, np.random.default_rng(0))
    assert skipping.babble(3, 4000, np.random.default_rng(0)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_snr_min": 20.0}, r"augment.noise_snr_min is 20, above augment.noise_snr_max, which is 15"),
        ({"babble_voices_min": 8}, r"augment.babble_voices_min is 8, above"),
        ({"gain_db_max": -11.0}, r"augment.gain_db_min is -10, above augment.gain_db_max, which is -11"),
        ({"noise_probability": 0.5}, r"augment.noise_probability is set, but augment.noise names no folder of recordings"),
        ({"room_probability": 0.5}, r"augment.room_probability is set, but augment.rooms names no folder of recordings"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    shards: Shards, small_recipe: Recipe, settings: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(shards, small_recipe, **settings)


def test_nothing_is_opened_for_what_is_off(shards: Shards, small_recipe: Recipe) -> None:
    config = AugmentConfig(noise=["/nowhere"], rooms=["/nowhere"])
    assert Distortions.of(replace(small_recipe, augment=config), shards) is None
