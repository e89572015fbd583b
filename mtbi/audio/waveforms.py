"""`waveform` reads anything that may be a recording. The Python API, the exports and the classes for transformers share it."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Number, Real
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch

from mtbi.audio import codec
from mtbi.errors import UserError

#: A file, its bytes, a file object, samples, or samples with their rate: anything that `waveform` understands.
Recording = Any
UNDERSTOOD = (
    "a recording is a file's path, its bytes or a file object, samples as an array, tensor or list of numbers, "
    "{'array': samples, 'sampling_rate': hertz} or (hertz, samples)"
)
MOST_CHANNELS = 16  # more is probably a spectrogram or a batch of recordings
RATES_HZ = (1_000, 1_000_000)  # a smaller number is probably in kilohertz
#: Samples of 32 or 64 bits whose range is less than this share of the full scale are 16-bit samples in a wider type.
NARROW = 2.0**-15


class RecordingError(UserError, ValueError):
    """A recording that cannot be used. Callers of transformers expect a ValueError."""


def waveform(recording: Recording, sampling_rate: float | None = None) -> np.ndarray:
    """A recording as `(samples,)` float32 at 16 kHz. The result shares no memory with the recording.

    - A path, a `file://` or `data:` address, a file's bytes or a file object. A seekable file object is read from its start.
    - Samples `(samples,)`, `(samples, channels)` or `(channels, samples)`: NumPy arrays, torch tensors, lists of numbers, and
      anything that NumPy reads. The shorter axis is that of the channels; their mean is taken. `sampling_rate` is in hertz, by
      default 16,000. Floats lie within [-1, 1]. Integers are divided by the full scale of their type; unsigned integers have
      their zero in the middle.
    - Samples with their own rate: `{"array", "sampling_rate"}` and `{"bytes", "path"}` as in Hugging Face datasets,
      `(rate, samples)`, `(samples, rate)`, a decoder of torchcodec.

    Raises RecordingError for anything else: files that cannot be read, remote addresses, no samples, samples that are not
    finite, far beyond 1, complex or Boolean, and axes or rates that are ambiguous.
    """
    if isinstance(recording, str) and recording[:5].lower() == "data:":
        return _read(_inline(recording))
    if isinstance(recording, (str, os.PathLike)):
        return _read(_local(os.fspath(recording)))
    if isinstance(recording, (bytes, bytearray)) or (isinstance(recording, memoryview) and recording.format == "B"):
        return _read(bytes(recording))
    if isinstance(recording, Mapping):
        return _from_mapping(recording, sampling_rate)
    if callable(getattr(recording, "get_all_samples", None)):  # torchcodec's AudioDecoder
        try:
            decoded = recording.get_all_samples()
        except RuntimeError as error:
            raise RecordingError(f"{_described(recording)} cannot be decoded: {error}") from error
        return _standard(decoded.data, _agreed(decoded.sample_rate, sampling_rate))
    if callable(getattr(recording, "read", None)):
        return _read(_content(recording))
    if pair := rate_and_samples(recording):
        return _standard(pair[1], _agreed(pair[0], sampling_rate))
    return _standard(recording, codec.SAMPLE_RATE if sampling_rate is None else _checked_rate(sampling_rate))


def listed(recordings: Recording | Sequence[Recording] | None) -> list[Recording]:
    """A recording, or a list or tuple of recordings, as a list. `(rate, samples)` and a list of numbers are one recording."""
    if recordings is None:
        return []
    if not isinstance(recordings, (list, tuple)) or rate_and_samples(recordings):
        return [recordings]
    return [recordings] if recordings and all(isinstance(item, Number) for item in recordings) else list(recordings)


def rate_and_samples(recording: Any) -> tuple[Any, Any] | None:
    """`(rate, samples)` from a pair of a number and samples in either order. None for everything else."""
    if not isinstance(recording, (tuple, list)) or len(recording) != 2:
        return None
    first, second = (isinstance(item, Number) for item in recording)
    if first == second:
        return None
    rate, samples = recording if first else reversed(recording)
    return None if samples is None or isinstance(samples, (str, bytes, os.PathLike, Mapping)) else (rate, samples)


def _read(source: str | bytes) -> np.ndarray:
    """The waveform of a file, or of its bytes. Errors name the file."""
    try:
        return codec.read(source)
    except (UserError, ValueError, OSError) as error:  # ValueError: a path with a null byte
        raise RecordingError(f"{source}: {error}" if isinstance(source, str) else str(error)) from error


def _inline(address: str) -> bytes:
    """The bytes of a file in a `data:` address. Raises RecordingError where they are not in base64."""
    head, _, content = address.partition(",")
    try:
        if not head.lower().endswith(";base64"):
            raise ValueError("';base64,' is missing")
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise RecordingError(f"{head[:60]}: not audio in base64: {error}") from error


def _local(path: str | bytes) -> str:
    """A local path. Raises RecordingError for a remote address."""
    path = os.fsdecode(path)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        return path
    if path.lower().startswith("file://"):
        return url2pathname(urlsplit(path).path)
    shown = path if len(path) <= 80 else f"{path[:77]}…"
    raise RecordingError(f"{shown}: not a local file; download or decode it first, and give the file's path or its bytes")


def _content(file: Any) -> bytes:
    """All bytes of a file object. Its position stays as it was."""
    try:
        position = file.tell() if getattr(file, "seekable", lambda: False)() else None
        if position is not None:
            file.seek(0)
        content = file.read()
        if position is not None:
            file.seek(position)
    except (TypeError, ValueError, OSError, EOFError) as error:  # ValueError: a closed file
        raise RecordingError(f"{_described(file)} cannot be read: {error}") from error
    if not isinstance(content, bytes):
        raise RecordingError(f"{_described(file)} gives {type(content).__name__}, not bytes: open the file with mode 'rb'")
    return content


def _from_mapping(recording: Mapping[str, Any], sampling_rate: float | None) -> np.ndarray:
    """The waveform of a recording of Hugging Face datasets: decoded samples, or a file."""
    given = {key for key, value in recording.items() if value is not None}
    samples = given & {"array", "raw"}
    unknown = set(map(str, given - {"array", "raw", "sampling_rate", "bytes", "path"}))
    if len(samples) == 1 and not given & {"bytes"} and not unknown:
        if "sampling_rate" not in given:
            raise RecordingError(f"a recording with the keys {sorted(given)} lacks its 'sampling_rate' in hertz")
        return _standard(recording[samples.pop()], _agreed(recording["sampling_rate"], sampling_rate))
    if not samples and given & {"bytes", "path"} and not unknown:
        return waveform(recording["bytes"] if "bytes" in given else recording["path"])
    raise RecordingError(f"a recording with the keys {sorted(map(str, recording))} is not understood: {UNDERSTOOD}")


def _agreed(own: Any, sampling_rate: float | None) -> int:
    """The rate in hertz of samples with a rate of their `own`. Raises RecordingError where `sampling_rate` differs."""
    rate = _checked_rate(own)
    if sampling_rate is not None and rate != sampling_rate:
        raise RecordingError(f"samples at {rate} Hz by themselves, and sampling_rate={sampling_rate}: which one is right?")
    return rate


def _checked_rate(rate: Any) -> int:
    """A sampling rate in hertz. Raises RecordingError for anything that is no rate of speech."""
    if isinstance(rate, (torch.Tensor, np.ndarray)) and rate.ndim == 0:
        rate = rate.item()
    number = float(rate) if isinstance(rate, Real) and not isinstance(rate, (bool, np.bool_)) else math.nan
    if not number.is_integer():
        raise RecordingError(f"a sampling rate of {rate!r}: it must be a whole number of hertz, such as 16000")
    if not RATES_HZ[0] <= number <= RATES_HZ[1]:
        raise RecordingError(f"a sampling rate of {rate!r} Hz is none of speech: give it in hertz, such as 16000")
    return int(number)


def _standard(samples: Any, rate_hz: int) -> np.ndarray:
    """The waveform of samples of any type and shape at a rate."""
    scaled = _scaled(_array(samples))
    try:
        return codec.standardise(_channels_last(scaled), rate_hz)
    except UserError as error:
        raise RecordingError(str(error)) from error


def _array(samples: Any) -> np.ndarray:
    """The samples as a NumPy array. Raises RecordingError for anything that is no array of numbers."""
    if isinstance(samples, (list, tuple)) and not _is_nested_numbers(samples):
        raise RecordingError(f"{_described(samples)} of {len(samples)} items, but one recording is expected: {UNDERSTOOD}")
    try:
        if isinstance(samples, torch.Tensor):
            samples = samples.detach().cpu()
            samples = (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that is not dense, or is on `meta`
        raise RecordingError(f"{_described(samples)} cannot be read as samples: {error}") from error
    if array.size and np.ma.is_masked(samples):
        raise RecordingError("samples with a mask: fill the masked ones first")
    if array.dtype.kind in "bc":
        raise RecordingError(f"samples of the type {array.dtype} are no audio: integers or floats within [-1, 1] are needed")
    if array.dtype.kind not in "iuf":
        raise RecordingError(f"{_described(samples)} cannot be read as a recording: {UNDERSTOOD}")
    return array


def _is_nested_numbers(samples: Sequence[Any]) -> bool:
    """Whether a list holds only numbers, or only lists of numbers."""
    if all(isinstance(item, Number) for item in samples):
        return True
    return all(isinstance(item, (list, tuple)) and all(isinstance(number, Number) for number in item) for item in samples)


def _scaled(array: np.ndarray) -> np.ndarray:
    """The samples as float32 within [-1, 1], in the same shape. Raises RecordingError where no scale fits."""
    if array.size == 0:
        raise RecordingError(f"no samples: the shape is {array.shape}")
    if array.dtype.kind == "f":
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise RecordingError(f"not finite: {bad} of {array.size} samples are NaN or infinite")
        peak = float(np.abs(array).max())
        if peak > codec.LARGEST_SAMPLE:
            raise RecordingError(
                f"not scaled: samples reach {peak:.5g}, but floats must lie within [-1, 1]; "
                "give the integers themselves, or divide by their full scale"
            )
        return array.astype(np.float32)
    limits = np.iinfo(array.dtype)
    half = 2.0 ** (limits.bits - 1)
    scaled = (array.astype(np.float64) - (half if limits.min == 0 else 0.0)) / half
    if limits.bits > 16 and 0 < np.ptp(scaled) < NARROW:
        raise RecordingError(
            f"not scaled: {array.dtype} samples from {array.min()} to {array.max()} use less than 16 of their {limits.bits} "
            "bits; convert them to the type that they had, such as int16"
        )
    return scaled.astype(np.float32)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """The samples as `(samples, channels)`. Raises RecordingError where the axes are ambiguous."""
    if array.ndim not in (1, 2):
        raise RecordingError(f"samples of the shape {array.shape}, but (samples,) or (samples, channels) is needed")
    if array.ndim == 1:
        return array[:, None]
    if array.shape[0] == array.shape[1] > 1:
        raise RecordingError(f"samples of the shape {array.shape}: which axis is that of the channels? Give (samples,)")
    if min(array.shape) > MOST_CHANNELS:
        raise RecordingError(
            f"samples of the shape {array.shape}: {min(array.shape)} channels are no recording; give (samples,), one by one"
        )
    return array if array.shape[0] >= array.shape[1] else array.T


def _described(value: Any) -> str:
    """A value in an error message, by its type."""
    return f"a value of the type {type(value).__name__}"
