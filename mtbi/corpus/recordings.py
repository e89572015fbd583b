"""The sound of an utterance. All steps that decode a manifest's recordings do it here."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from mtbi import object_store
from mtbi.audio import codec, remote
from mtbi.audio.segments import AudioSegment
from mtbi.corpus import records
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UnavailableError, UserError

log = logging.getLogger(__name__)


def segment_of(utterance: Utterance) -> AudioSegment | None:
    """The part of its file that an utterance is; None where it is the whole file."""
    if utterance.start_s is None:
        return None
    return AudioSegment(utterance.start_s, max(0.0, utterance.duration_s))


def load(utterance: Utterance, folder: Path | str, max_seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """The samples `(samples, channels)` float32 of an utterance, and the sampling rate in Hz.

    A relative audio path starts from `folder`. Raises UserError as `codec.load` does, and UnavailableError where a recording is
    on object storage that fails or refuses access.
    """
    if object_store.is_remote(utterance.audio):
        with remote.opened(utterance.audio) as file:
            return codec.load_open(file, None, max_seconds, segment_of(utterance))
    return codec.load(Path(folder) / utterance.audio, max_seconds, segment_of(utterance))


def read(utterance: Utterance, folder: Path | str) -> np.ndarray:
    """The waveform of an utterance, `(samples,)` float32 at 16 kHz.

    Raises UserError as `load` does, and where the recording is not as long as the manifest says.
    """
    wave = codec.standardise(*load(utterance, folder))
    refuse_other_duration(utterance, len(wave) / codec.SAMPLE_RATE)
    return wave


def read_or_warn(utterance: Utterance, folder: Path | str) -> np.ndarray | None:
    """As `read`; None, and a line of the log, where the recording cannot be read. Raises UnavailableError as `load` does."""
    try:
        return read(utterance, folder)
    except UnavailableError:  # it is not the recording's fault
        raise
    except UserError as error:
        log.warning("%s: %s (%s)", utterance.id, error, utterance.audio)
        return None


def refuse_other_duration(utterance: Utterance, seconds: float) -> None:
    """Raises UserError where the record gives another duration than its recording has. `load` holds segments to theirs."""
    given = utterance.duration_s
    if utterance.start_s is None and 0 < given < math.inf and not records.same_duration(given, seconds):
        raise UserError(
            f"duration differs: {given:.2f} s in the record, {seconds:.2f} s in the file; where the utterance is a part of the "
            "file, give its start_s too"
        )
