"""Speech for the miniature world: espeak-ng's voices where there are no recordings, and digits joined into strings."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from mtbi.demo.importer import TEST_NUMBERS, UNSEEN_SPEAKER
from mtbi.demo.world import DIGITS
from mtbi.errors import UserError

SAMPLE_RATE = 16_000
#: Accents and variants of espeak-ng. Each pair stands for one speaker.
ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Andy", "Annie", "Alicia", "Denis", "Gene",
    "Hugo", "Jacky", "Lee", "Michael", "Mike", "adam", "belinda", "caleb", "david", "edward", "ian", "john", "linda", "max",
    "paul", "quincy", "rob", "steph", "travis", "victor", "klatt", "klatt2", "klatt3", "sandro", "pablo", "marcelo", "gustave",
)  # fmt: skip


class EspeakVoices:
    """espeak-ng, by the library in the wheel `espeakng-loader`. No system package is needed.

    Raises UserError where the wheel is missing or its data cannot be read.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "No recordings were given and espeak-ng is missing: pip install 'mtbi[demo]', or give a folder of recordings."
            ) from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path()).parent
        self.sample_rate = self._library.espeak_Initialize(2, 0, str(data).encode(), 0)  # 2: synchronous, samples to a callback
        if self.sample_rate <= 0:
            raise UserError(f"espeak-ng could not read its data in {data}: reinstall the package espeakng-loader.")
        self._pieces: list[np.ndarray] = []
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = signature(self._collect)  # an attribute, because espeak-ng holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer, count: int, _events: int) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> np.ndarray:
        """`text` as float32 `(samples,)` at `self.sample_rate`, without silence around it. `pitch` is 0 to 99."""
        self._pieces.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {voice!r}; see the names in its data folder.")
        self._library.espeak_SetParameter(1, words_per_minute, 0)
        self._library.espeak_SetParameter(3, pitch, 0)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, 1, None, None)
        self._library.espeak_Synchronize()
        wave = np.concatenate(self._pieces).astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(wave) > 0.01)
        return wave[loud[0] : loud[-1] + 1]


def speak_digits(folder: Path, voices: int, recordings: int, seed: int) -> None:
    """Make a folder in the layout of the Free Spoken Digit Dataset: `{digit}_{speaker}_{n}.flac`.

    The last speaker is called `theo`, because the importer keeps the recordings of that speaker for test. Recordings of one
    digit differ in rate and pitch. Some have the numbers that the importer keeps for test as well, from 40 on.
    """
    espeak = EspeakVoices()
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = rng.sample([(accent, variant) for accent in ACCENTS for variant in VARIANTS], voices)
    numbers = [*range(recordings), *TEST_NUMBERS[: max(2, recordings // 4)]]
    for index, (accent, variant) in enumerate(tqdm(names, desc="espeak-ng speaks", unit="voice")):
        speaker = UNSEEN_SPEAKER if index == voices - 1 else f"{accent}{variant}".replace("-", "")
        base_pitch = rng.randint(25, 75)
        for digit, word in enumerate(DIGITS):
            for number in numbers:
                wave = espeak.speak(word, f"{accent}+{variant}", rng.randint(120, 220), base_pitch + rng.randint(-15, 15))
                soundfile.write(folder / f"{digit}_{speaker}_{number}.flac", wave, espeak.sample_rate)


def join(clips: Iterable[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Clips (16 kHz) in a row with pauses of 50 to 350 ms. Returns the waveform, and (start, end) of each clip in seconds."""

    def pause(shortest: float, longest: float) -> np.ndarray:
        return np.zeros(int(rng.uniform(shortest, longest) * SAMPLE_RATE), np.float32)

    pieces = [pause(0.05, 0.2)]
    times: list[tuple[float, float]] = []
    length = len(pieces[0])
    for clip in clips:
        times.append((length / SAMPLE_RATE, (length + len(clip)) / SAMPLE_RATE))
        pieces += [clip, pause(0.05, 0.35)]
        length += len(clip) + len(pieces[-1])
    return np.concatenate(pieces), times
