"""The diarization error rate: how much of the speakers' time a system gives to nobody, or to the wrong speaker.

As defined for the NIST Rich Transcription evaluations, whose script is md-eval: each reference speaker is mapped to at most
one speaker of the system, so that their common time is longest. Overlap counts, for each speaker in it. The times are exact,
without a grid of frames. All speech of both sides counts; md-eval without a UEM file ignores what the system hears before the
first and after the last segment of the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mtbi.scenes.needs import need
from mtbi.scenes.segments import SpeakerSegment


@dataclass(frozen=True)
class DiarizationErrors:
    """Speaker seconds: two speakers at once are two seconds a second.

    `speech` is the reference's, `missed` what nobody was heard in, `false_alarm` what nobody spoke in, `confusion` what was
    given to another speaker than the mapping says.
    """

    speech: float = 0.0
    missed: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0

    @property
    def rate(self) -> float | None:
        """Errors / speech; None without speech."""
        return (self.missed + self.false_alarm + self.confusion) / self.speech if self.speech else None

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        return DiarizationErrors(
            self.speech + other.speech,
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
        )


Spans = list[tuple[float, float]]


def diarization_errors(
    reference: Sequence[SpeakerSegment], hypothesis: Sequence[SpeakerSegment], collar: float = 0.0
) -> DiarizationErrors:
    """The errors of one session.

    `collar` is in seconds. So much before and after each start and end of a reference segment is not scored, as with md-eval's
    `-c`. The mapping of speakers does not depend on it. Raises UserError for segments without times.
    """
    true, heard = _spans(reference), _spans(hypothesis)
    ignored: Spans = [(time - collar, time + collar) for spans in true.values() for span in spans for time in span if collar]
    mapping = _mapping(true, heard)
    speech = missed = false_alarm = confusion = 0.0
    for length, now, answer, hidden in _stretches(true, heard, ignored):
        if hidden:
            continue
        right = len({mapping.get(speaker) for speaker in now} & answer)
        speech += length * len(now)
        missed += length * max(0, len(now) - len(answer))
        false_alarm += length * max(0, len(answer) - len(now))
        confusion += length * (min(len(now), len(answer)) - right)
    return DiarizationErrors(speech, missed, false_alarm, confusion)


def _spans(segments: Iterable[SpeakerSegment]) -> dict[str, Spans]:
    """Starts and ends of each speaker's segments; empty segments are left out."""
    spans: dict[str, Spans] = {}
    for segment in segments:
        start, end = segment.span
        if end > start:
            spans.setdefault(segment.speaker, []).append((start, end))
    return spans


def _stretches(
    true: Mapping[str, Spans], heard: Mapping[str, Spans], ignored: Spans
) -> Iterator[tuple[float, set[str], set[str], bool]]:
    """Stretches in which nothing changes: seconds, speakers of the reference and of the system, and whether it is ignored."""
    changes: dict[float, list[tuple[int, str, int]]] = {}
    for side, groups in enumerate((true, heard, {"": ignored})):
        for speaker, spans in groups.items():
            for start, end in spans:
                changes.setdefault(start, []).append((side, speaker, 1))
                changes.setdefault(end, []).append((side, speaker, -1))
    counts: tuple[dict[str, int], ...] = ({}, {}, {})
    for now, after in pairwise(sorted(changes)):
        for side, speaker, step in changes[now]:  # own segments may overlap, so they are counted
            counts[side][speaker] = counts[side].get(speaker, 0) + step
        active = [{speaker for speaker, count in side.items() if count} for side in counts]
        yield after - now, active[0], active[1], bool(active[2])


def _mapping(true: Mapping[str, Spans], heard: Mapping[str, Spans]) -> dict[str, str]:
    """The system's speaker for each reference speaker, with the longest common time of all."""
    rows, columns = list(true), list(heard)
    if not (rows and columns):
        return {}
    common = [[0.0] * len(columns) for _ in rows]
    for length, now, answer, _ in _stretches(true, heard, []):
        for speaker in now:
            for other in answer:
                common[rows.index(speaker)][columns.index(other)] += length
    pairs = zip(*need("scipy.optimize:linear_sum_assignment")(common, maximize=True), strict=True)
    return {rows[row]: columns[column] for row, column in pairs}
