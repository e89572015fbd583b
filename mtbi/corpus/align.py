"""Word times of a manifest. The aligner is a CTC model (`mtbi.corpus.ctc_aligner`) or Whisper (`mtbi.model.word_times`)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

from tqdm import tqdm

from mtbi import plugins, text_units
from mtbi.audio import codec
from mtbi.corpus import recordings
from mtbi.corpus.aligner import Aligner, Alignment, Clip, Spans
from mtbi.corpus.ctc_aligner import HuggingFaceAligner
from mtbi.corpus.manifest import ManifestSlice, Utterance
from mtbi.corpus.parts import rewrite

log = logging.getLogger(__name__)
CHUNK_UTTERANCES = 128  #: read and aligned together


def open_aligner(name: str) -> Aligner:
    """A shipped aligner (`demo`), or a Whisper or CTC model of transformers by name or folder.

    Raises UserError where the model cannot be read, or cannot align.
    """
    shipped = plugins.SHIPPED[plugins.ALIGNERS]
    if name in shipped:
        return plugins.import_part(shipped[name])()
    kind = plugins.SHIPPED[plugins.MODEL_ALIGNERS].get(model_type(name))
    return plugins.import_part(kind)(name) if kind else HuggingFaceAligner(name)


def model_type(name: str) -> str:
    """The architecture of a model of transformers. Empty where its configuration cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    except (OSError, ValueError, KeyError):
        return ""  # the CTC aligner says what is wrong


def tile(spans: Spans, duration_seconds: float) -> Spans:
    """Spans of words to spans without gaps, in seconds. Neighbours meet in the middle of the pause between them.

    The first span starts at 0. The last span ends with the utterance.
    """
    inner = [(left[1] + right[0]) / 2 for left, right in pairwise(spans)]
    edges = [0.0, *(round(min(edge, duration_seconds), 4) for edge in inner), round(duration_seconds, 4)]
    return list(pairwise(edges))


def align(utterances: Iterable[Utterance], folder: Path | str, aligner: Aligner) -> Iterator[Utterance]:
    """Each utterance with its `words`, in the given order. Relative audio paths start from `folder`.

    `words` is None where alignment is impossible: the aligner gives a reason, or the file can no longer be read (logged).
    A progress bar counts these utterances, and the log counts the reasons. They can train the model, but they cannot be
    interleaved.
    """
    reasons: Counter[str] = Counter()
    single = 0
    with tqdm(utterances, desc="align", unit="utterance", disable=None) as bar:
        remaining = iter(bar)
        while chunk := list(islice(remaining, CHUNK_UTTERANCES)):
            for utterance, (words, reason) in zip(chunk, _word_times(chunk, Path(folder), aligner), strict=True):
                reasons.update([reason] if words is None else [])
                single += words is not None and len(words) == 1
                yield replace(utterance, words=words)
            bar.set_postfix(unaligned=reasons.total(), refresh=False)
    for reason, count in reasons.most_common():
        log.warning("%d utterances have no word times: %s", count, reason)
    if single:
        log.warning("%d aligned utterances have one word only: they train the model, but are not interleaved", single)


def _word_times(
    utterances: Iterable[Utterance], folder: Path, aligner: Aligner
) -> Iterator[tuple[list[tuple[str, float, float]] | None, str]]:
    """(word, start, end) in seconds of each utterance's words, or None and the reason."""
    with ThreadPoolExecutor() as pool:
        clips = list(pool.map(lambda utterance: _read(utterance, folder), utterances))
    alignments = iter(aligner.align([clip for clip in clips if isinstance(clip, Clip)]))
    for clip in clips:
        if not isinstance(clip, Clip):
            yield None, clip
            continue
        alignment = next(alignments)
        yield times_of(clip, alignment), alignment.reason


def times_of(clip: Clip, alignment: Alignment) -> list[tuple[str, float, float]] | None:
    """(unit, start, end) in seconds of a clip's units, which tile the clip. None where it is not aligned."""
    if alignment.spans is None:
        return None
    times = tile(alignment.spans, len(clip.wave) / codec.SAMPLE_RATE)
    return [(unit, start, end) for unit, (start, end) in zip(clip.units, times, strict=True)]


def _read(utterance: Utterance, folder: Path) -> Clip | str:
    """The recording with its words, or why there is none."""
    if not utterance.audio:
        return "text without sound"
    if (wave := recordings.read_or_warn(utterance, folder)) is None:
        return "the recording cannot be read"
    return Clip(wave, text_units.units(utterance.text), utterance.language)


def align_manifest(
    manifest: Path | str, out: Path | str, aligner: Aligner, part: ManifestSlice | None = None
) -> tuple[int, int]:
    """Write the manifest `out` with word times (`mtbi.corpus.parts`); returns how many are aligned, and how many are not."""
    aligned = rewrite(manifest, out, lambda utterances, folder: align(utterances, folder, aligner), part)
    without = sum(utterance.words is None for utterance in aligned)
    return len(aligned) - without, without
