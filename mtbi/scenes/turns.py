"""When the next speaker begins: statistics of turns, fitted from any segments with times, and the starts of simulated turns.

The model is that of conversation simulators (Landini et al. 2022, arXiv 2204.00890; Park et al. 2023, arXiv 2310.12371): the
next turn is of the same speaker, after a pause, or of another one, after a gap or in an overlap. Lengths are drawn from the
observed ones. Turns of one speaker never overlap, and at most two speak at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from mtbi.errors import UserError
from mtbi.scenes.segments import SpeakerSegment, by_session


@dataclass(frozen=True)
class TurnStatistics:
    """What follows a turn. `pauses`, `gaps` and `overlaps` are seconds in rising order, quantiles at equal distances."""

    change: float  #: share of turns that are followed by another speaker
    overlap: float  #: share of those changes that overlap
    pauses: tuple[float, ...]
    gaps: tuple[float, ...]
    overlaps: tuple[float, ...]


#: Deciles of 107 neighbouring turns in 15 excerpts of 30 seconds from meetings of the AMI corpus.
MEETINGS = TurnStatistics(
    change=0.86,
    overlap=0.61,
    pauses=(0.97, 1.07, 1.42, 1.57, 1.74, 2.19, 2.35, 3.16, 5.44),
    gaps=(0.12, 0.30, 0.47, 0.91, 1.10, 1.76, 3.35, 4.58, 8.87),
    overlaps=(0.11, 0.39, 0.63, 1.00, 1.42, 1.87, 2.74, 3.45, 6.47),
)


def fit(segments: Iterable[SpeakerSegment]) -> TurnStatistics:
    """The statistics of neighbouring turns, in the order of their starts within each session.

    Raises UserError for segments without times, and where no speaker follows another.
    """
    pauses: list[float] = []
    changes: list[float] = []
    for session in by_session(segments).values():
        turns = sorted(session, key=lambda segment: segment.span)
        for before, after in pairwise(turns):
            (pauses if before.speaker == after.speaker else changes).append(after.span[0] - before.span[1])
    if not changes:
        raise UserError("no speaker follows another one in any session, so no statistics of turns can be fitted")
    gaps = tuple(sorted(length for length in changes if length >= 0))
    overlaps = tuple(sorted(-length for length in changes if length < 0))
    shares = len(changes) / (len(changes) + len(pauses)), len(overlaps) / len(changes)
    return TurnStatistics(*shares, tuple(sorted(max(0.0, pause) for pause in pauses)), gaps, overlaps)


def draw_speakers(statistics: TurnStatistics, speakers: Sequence[str], turns: int, draw: Random) -> list[str]:
    """The speaker of each of `turns` turns. The first turns are one of each speaker; `turns` is at least their number."""
    order = draw.sample(list(speakers), len(speakers))
    while len(order) < turns:
        others = [speaker for speaker in speakers if speaker != order[-1]]
        order.append(draw.choice(others) if others and draw.random() < statistics.change else order[-1])
    return order


def draw_starts(statistics: TurnStatistics, turns: Sequence[tuple[str, float]], draw: Random) -> list[float]:
    """The start of each turn in seconds, from its speaker and its length in seconds. The first one starts at 0."""
    starts: list[float] = []
    ends: dict[str, float] = {}  # of each speaker's last turn
    for index, (speaker, length) in enumerate(turns):
        if not index:
            start = 0.0
        elif speaker == turns[index - 1][0]:
            start = ends[speaker] + _quantile(statistics.pauses, draw)
        elif draw.random() < statistics.overlap:
            before = turns[index - 1]
            start = ends[before[0]] - min(_quantile(statistics.overlaps, draw), before[1], length)
        else:
            start = ends[turns[index - 1][0]] + _quantile(statistics.gaps, draw)
        two_before = sorted(ends.values())[-2] if len(ends) > 1 else 0.0  # after this only one turn goes on
        start = max(start, ends.get(speaker, 0.0), two_before, starts[-1] if starts else 0.0)
        starts.append(start)
        ends[speaker] = start + length
    return starts


def _quantile(quantiles: Sequence[float], draw: Random) -> float:
    """A length between the observed ones; 0 where none was observed."""
    if not quantiles:
        return 0.0
    place = draw.random() * (len(quantiles) - 1)
    below = int(place)
    above = min(below + 1, len(quantiles) - 1)
    return quantiles[below] + (place - below) * (quantiles[above] - quantiles[below])
