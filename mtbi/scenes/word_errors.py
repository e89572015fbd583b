"""Word errors of transcripts with speakers: cpWER, tcpWER, ORC-WER and tcORC-WER by meeteval, and SA-WER.

- cpWER (Watanabe et al. 2020, arXiv 2004.09249): the words of each speaker in a row, under the best assignment of speakers.
- tcpWER (von Neumann et al. 2023, arXiv 2307.11394): the same, where words that are further apart than a collar do not match.
- ORC-WER (Sklyar et al. 2022; von Neumann et al. 2023, arXiv 2211.16112): each reference segment goes to the stream of the
  hypothesis where it fits best. Wrong speakers cost nothing. tcORC-WER has the collar of tcpWER.
- SA-WER (Kanda et al. 2020, arXiv 2006.10930): speakers are compared by their names, so a right word of a wrong name is wrong.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

from rapidfuzz.distance import Levenshtein

from mtbi.scenes.needs import need
from mtbi.scenes.segments import SpeakerSegment, by_speaker
from mtbi.scenes.write import record

CP, TCP, ORC, TCORC, SA = "cpWER", "tcpWER", "ORC-WER", "tcORC-WER", "SA-WER"
TIMED = (TCP, TCORC)
#: meeteval refuses more speakers of a session: it takes them for a mistake, and ORC-WER for too expensive.
MOST_SPEAKERS = {CP: 20, TCP: 20, ORC: 10, TCORC: 10}
#: The exact ORC-WER fills a table with (words of the reference) x (words + 1 of each stream) cells, tcORC-WER only what of it
#: the collar allows. A session with more cells is scored by meeteval's greedy search, whose result is an upper bound. This many
#: cells take some seconds and some hundred MB (ORC-WER), or a minute and little memory (tcORC-WER).
MOST_CELLS = {ORC: 1e8, TCORC: 1e9}


@dataclass(frozen=True)
class TranscriptErrors:
    """The word errors of a transcript, and the number of words of its reference."""

    words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors / words; None without words."""
        return self.errors / self.words if self.words else None

    def __add__(self, other: TranscriptErrors) -> TranscriptErrors:
        return TranscriptErrors(
            self.words + other.words,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True)
class ScoredTranscript:
    """The errors by one measure.

    `greedy` says that they are an upper bound. `speakers` are pairs of a reference speaker and the hypothesis's speaker that
    was compared with that one (cpWER and tcpWER; None: nobody).
    """

    counts: TranscriptErrors
    greedy: bool = False
    speakers: tuple[tuple[str | None, str | None], ...] = ()


def transcript_errors(
    measure: str, reference: Sequence[SpeakerSegment], hypothesis: Sequence[SpeakerSegment], collar: float
) -> ScoredTranscript | None:
    """The errors of one session by cpWER, tcpWER, ORC-WER or tcORC-WER.

    Words are what spaces separate. `collar` is in seconds, for tcpWER and tcORC-WER. The result is None where the session has
    more speakers than the measure can take. Raises UserError if meeteval is not installed.
    """
    if measure in (ORC, TCORC):  # meeteval 0.4.3 fails at segments without words, and where a side has none
        reference, hypothesis = ([segment for segment in side if _words(segment)] for side in (reference, hypothesis))
        expected, said = (sum(len(_words(segment)) for segment in side) for side in (reference, hypothesis))
        if not (expected and said):
            return ScoredTranscript(TranscriptErrors(expected, deletions=expected, insertions=said))
    sides = {"reference": [record(segment) for segment in reference], "hypothesis": [record(segment) for segment in hypothesis]}
    counted = (hypothesis,) if measure in (ORC, TCORC) else (reference, hypothesis)
    if any(len({segment.speaker for segment in side}) > MOST_SPEAKERS[measure] for side in counted):
        return None
    cells = _cells(reference, hypothesis, collar if measure == TCORC else None) if measure in MOST_CELLS else 0
    greedy = cells > MOST_CELLS.get(measure, 0)
    names = {
        CP: "cp_word_error_rate",
        TCP: "time_constrained_minimum_permutation_word_error_rate",
        ORC: "greedy_orc_word_error_rate" if greedy else "orc_word_error_rate",
        TCORC: "greedy_time_constrained_orc_wer" if greedy else "time_constrained_orc_wer",
    }
    settings: dict[str, Any] = {"collar": collar} if measure in TIMED else {}
    if any(segment.start_time is None for segment in (*reference, *hypothesis)):
        settings |= {"reference_sort": False, "hypothesis_sort": False}
    scorer, container = need(f"meeteval.wer:{names[measure]}"), need("meeteval.io:SegLST")
    with _quiet_meeteval():
        found = scorer(**{side: container(segments) for side, segments in sides.items()}, **settings)
    counts = TranscriptErrors(found.length, found.substitutions, found.deletions, found.insertions)
    return ScoredTranscript(counts, greedy, tuple(found.assignment or ()) if measure in (CP, TCP) else ())


def _words(segment: SpeakerSegment) -> list[str]:
    """The words of a segment: what spaces separate."""
    return (segment.words or "").split()


@contextmanager
def _quiet_meeteval() -> Iterator[None]:
    """Keeps meeteval's warnings about one session from the terminal; a report has notes about all sessions together."""
    logger = logging.getLogger("preprocess")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cells(reference: Sequence[SpeakerSegment], hypothesis: Sequence[SpeakerSegment], collar: float | None) -> int:
    """The size of the table of ORC-WER; with a collar, at most that of tcORC-WER."""
    streams = [_words_near(stream, collar) for stream in by_speaker(hypothesis).values()]
    return sum(prod((len(_words(segment)), *(1 + near(segment) for near in streams))) for segment in reference)


def _words_near(stream: Sequence[SpeakerSegment], collar: float | None) -> Callable[[SpeakerSegment], int]:
    """A function from a segment to the number of words in a stream that a collar lets match it; all without a collar."""
    counts = [len(_words(segment)) for segment in stream]
    if collar is None:
        return lambda _: sum(counts)
    times = [sorted((segment.span[side], count) for segment, count in zip(stream, counts, strict=True)) for side in (0, 1)]
    (starts, ends), (begun, ended) = (
        [[time for time, _ in side] for side in times],
        [[0, *accumulate(count for _, count in side)] for side in times],
    )

    def near(segment: SpeakerSegment) -> int:
        start, end = segment.span
        return begun[bisect_right(starts, end + collar)] - ended[bisect_left(ends, start - collar)]

    return near


def named_errors(reference: Sequence[SpeakerSegment], hypothesis: Sequence[SpeakerSegment]) -> TranscriptErrors:
    """The errors of one session by SA-WER: the words of each name in a row, in the order of the segments' starts."""
    sides = [by_speaker(sorted(side, key=lambda segment: segment.start_time or 0.0)) for side in (reference, hypothesis)]
    total = TranscriptErrors()
    for speaker in dict.fromkeys((*sides[0], *sides[1])):
        expected, said = ([word for segment in side.get(speaker, []) for word in _words(segment)] for side in sides)
        steps = [step.tag for step in Levenshtein.editops(expected, said)]
        total += TranscriptErrors(len(expected), steps.count("replace"), steps.count("delete"), steps.count("insert"))
    return total
