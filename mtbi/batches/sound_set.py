"""Recordings that augmentation draws from: noise, and impulse responses of rooms."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from mtbi import object_store
from mtbi.audio import codec, sound_files
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.audio.segments import AudioSegment
from mtbi.corpus.manifest import read_manifest
from mtbi.corpus.paths import walk
from mtbi.errors import UserError

HEADER_THREADS = 16
WHOLE_SECONDS = 60.0  #: of longer recordings in SEEKABLE formats only the piece that is needed is decoded
SEEKABLE = ("WAV", "FLAC")


@dataclass(frozen=True)
class SoundSet:
    """Recordings in a fixed order."""

    field: str  #: of the recipe, for messages
    files: tuple[Path, ...]
    names: tuple[str, ...]  #: of the files, without the folders that they were found in

    @classmethod
    def of(cls, field: str, paths: list[str], longest_seconds: float = math.inf) -> SoundSet:
        """The recordings in folders at any depth, in manifests (`.jsonl`), or given as files. Any sampling rate will do.

        Only headers are read here. Raises UserError where a path is missing or holds no recording, and for a file that cannot
        be opened, is empty, or longer than `longest_seconds`.
        """
        found: list[tuple[str, Path]] = []
        for path in map(Path, paths):
            own = files_of(field, path)
            if not own:
                raise UserError(f"{field}: {path} holds no recordings; name a folder with sound files, or a manifest.")
            found += own
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            for _ in pool.map(lambda entry: check_header(field, entry[1], longest_seconds), found):
                pass
        return cls(field, tuple(path for _, path in found), tuple(name for name, _ in found))

    def read(self, path: Path) -> np.ndarray:
        """The first channel of a whole recording, `(samples,)` at 16 kHz. Raises UserError if it cannot be decoded."""
        try:
            samples, rate = codec.load(path)
        except UserError as error:
            raise unusable(self.field, path, error) from error
        return codec.standardise(samples[:, :1], rate)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A whole recording, drawn at random."""
        return self.read(self.files[int(rng.integers(len(self.files)))])

    def draw_piece(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """`(samples,)` from a random place of a recording drawn at random. A shorter one is repeated."""
        path, place = self.files[int(rng.integers(len(self.files)))], float(rng.random())
        piece = self.seek(path, samples, place)
        return repeated(self.read(path), samples, place) if piece is None else piece

    def seek(self, path: Path, samples: int, place: float) -> np.ndarray | None:
        """`(samples,)` of a long recording at `place`, from 0 to 1, without decoding the rest; None for all others."""
        try:
            about = soundfile.info(str(path))
            rate, wanted = about.samplerate, -(-samples * about.samplerate // SAMPLE_RATE) + 1
            if about.format not in SEEKABLE or about.frames < max(wanted, WHOLE_SECONDS * rate):
                return None
            first = int(place * (about.frames - wanted))
            found, _ = codec.load(path, segment=AudioSegment(first / rate, wanted / rate))
        except (soundfile.LibsndfileError, UserError):
            return None
        piece = codec.standardise(found[:, :1], rate)
        return piece[:samples] if len(piece) >= samples else None


def files_of(field: str, path: Path) -> list[tuple[str, Path]]:
    """The recordings of a folder, a manifest or a file, each with its name, in order."""
    if path.is_dir():
        return [(file.relative_to(path).as_posix(), file) for file in walk(path).files if sound_files.is_sound(file)]
    if path.suffix == ".jsonl":
        entries = [entry for entry in read_manifest(path) if entry.audio]
        if segment := next((entry for entry in entries if entry.start_s is not None), None):
            raise UserError(f"{field}: {path}: {segment.id} is a segment of a longer file; name whole files here.")
        if remote := next((entry for entry in entries if object_store.is_remote(entry.audio)), None):
            raise UserError(f"{field}: {path}: {remote.audio} is on object storage; download it, and name files here.")
        return [(entry.audio, path.parent / entry.audio) for entry in entries]
    if not path.exists():
        raise UserError(f"{field}: there is no {path}; name a folder with sound files, or a manifest.")
    return [(path.name, path)]


def check_header(field: str, path: Path, longest_seconds: float) -> None:
    """Raises UserError as `SoundSet.of` says."""
    try:
        about = soundfile.info(str(path))
        seconds = about.frames / about.samplerate
    except soundfile.LibsndfileError:  # another program may decode it, and names the reason if it cannot
        try:
            samples, rate = codec.load(path)
        except UserError as error:
            raise unusable(field, path, error) from error
        seconds = len(samples) / rate
    if not seconds:
        raise unusable(field, path, "no samples")
    if seconds > longest_seconds:
        raise unusable(field, path, f"{seconds:.1f} s long, and an impulse response is at most {longest_seconds:g} s")


def unusable(field: str, path: Path, reason: object) -> UserError:
    """The error for a recording that cannot be used."""
    return UserError(f"{field}: {path}: {reason}. Take this file away, or convert it.")


def repeated(wave: np.ndarray, samples: int, place: float) -> np.ndarray:
    """`(samples,)` of a waveform: from `place`, 0 to 1, of where such a piece can begin, or repeated where it is shorter."""
    starts = len(wave) - samples + 1 if len(wave) > samples else len(wave)
    start = min(int(place * starts), starts - 1)
    return np.take(wave, np.arange(start, start + samples), mode="wrap")
