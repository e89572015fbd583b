"""Scores files of segments of any system: word errors with speakers, diarization errors, and numbers of speakers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from mtbi import text_units
from mtbi.errors import UserError
from mtbi.metrics.normalise import normalise, normalise_english, normalise_words
from mtbi.scenes.diarization import DiarizationErrors, diarization_errors
from mtbi.scenes.segments import SegmentFile, SpeakerSegment
from mtbi.scenes.word_errors import (
    CP,
    MOST_SPEAKERS,
    ORC,
    SA,
    TCORC,
    TCP,
    TIMED,
    ScoredTranscript,
    TranscriptErrors,
    named_errors,
    transcript_errors,
)

MEASURES = (CP, TCP, ORC, TCORC)
#: Forms in which texts are compared, and what they do.
NORMALISERS: dict[str, tuple[Callable[[str], str], str]] = {
    "none": (str, "texts as written"),
    "plain": (normalise, "texts without case and punctuation"),
    "words": (normalise_words, "texts without case, punctuation and remarks in brackets, cut at apostrophes"),
    "english": (normalise_english, "texts in the form of Whisper's English normaliser"),
}


@dataclass(frozen=True)
class ScoreSettings:
    """How scenes are scored."""

    collar: float = 5.0  #: seconds, of tcpWER and tcORC-WER
    der_collar: float = 0.0  #: seconds on each side of a boundary, of DER
    normaliser: str = "none"  #: a key of NORMALISERS
    missing_is_empty: bool = False  #: a session that the hypothesis lacks counts as one where it found nothing


@dataclass(frozen=True)
class SceneScores:
    """The scores of one session, or of all.

    `words` holds the errors of each measure, None where a measure could not be computed. `speakers` is the number of speakers
    of the hypothesis, of the reference, and of sessions where both are equal.
    """

    session: str
    words: dict[str, ScoredTranscript | None]
    diarization: DiarizationErrors | None
    speakers: tuple[int, int, int]


@dataclass(frozen=True)
class SceneReport:
    """The scores of all sessions, their total, how they were made, and what a reader must know about them."""

    sessions: list[SceneScores]
    total: SceneScores
    settings: ScoreSettings
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON holds it. Rates are shares, times are seconds."""
        records = [{"session": scores.session, **_to_json(scores)} for scores in self.sessions]
        return {"settings": asdict(self.settings), "notes": self.notes, "total": _to_json(self.total), "sessions": records}


def score_files(hypothesis: SegmentFile, reference: SegmentFile, settings: ScoreSettings) -> SceneReport:
    """Score a system's segments against a reference.

    Word errors need words in both files, tcpWER, tcORC-WER and DER need times. SA-WER is computed where a speaker of the
    hypothesis has the name of a reference speaker of the same session. Raises UserError where the sessions of both files
    differ, where neither words nor times are in both, and where meeteval is not installed.
    """
    true, heard = reference.sessions(), hypothesis.sessions()
    _check_sessions(hypothesis, reference, settings)
    timed = hypothesis.has_times and reference.has_times
    worded = hypothesis.has_words and reference.has_words
    if not (timed or worded):
        raise UserError(f"{hypothesis.path} and {reference.path}: words or times must be in both files, and neither are")
    measures = [measure for measure in MEASURES if worded and (timed or measure not in TIMED)]
    clean = partial(_cleaned, normaliser=settings.normaliser)
    named = worded and any(_names(heard.get(session, [])) & _names(segments) for session, segments in true.items())
    sessions = []
    for session, segments in true.items():
        answer = heard.get(session, [])
        expected, said = ([clean(segment) for segment in side] for side in (segments, answer))
        scores = _score_words(measures, named, expected, said, settings.collar)
        diarization = diarization_errors(segments, answer, settings.der_collar) if timed else None
        numbers = len(_names(answer)), len(_names(segments))
        sessions.append(SceneScores(session, scores, diarization, (*numbers, int(numbers[0] == numbers[1]))))
    notes = [*_notes(hypothesis, reference), *_limits(sessions)]
    return SceneReport(sessions, _total(sessions), settings, notes)


def _score_words(
    measures: Sequence[str], named: bool, segments: list[SpeakerSegment], answer: list[SpeakerSegment], collar: float
) -> dict[str, ScoredTranscript | None]:
    """The word errors of one session by each measure, and by name where `named`."""
    scores = {measure: transcript_errors(measure, segments, answer, collar) for measure in measures}
    return {**scores, SA: ScoredTranscript(named_errors(segments, answer))} if named else scores


def _names(segments: Sequence[SpeakerSegment]) -> set[str]:
    """The speakers of segments."""
    return {segment.speaker for segment in segments}


def _cleaned(segment: SpeakerSegment, normaliser: str) -> SpeakerSegment:
    """A segment in a normaliser's form, with spaces between the units of its text (see `mtbi.text_units`), without `more`."""
    text = NORMALISERS[normaliser][0](segment.words or "")
    return replace(segment, words=" ".join(unit.strip() for unit in text_units.units(text)), more={})


def _check_sessions(hypothesis: SegmentFile, reference: SegmentFile, settings: ScoreSettings) -> None:
    """Raises UserError where one file has sessions that the other lacks."""
    true, heard = reference.sessions().keys(), hypothesis.sessions().keys()
    if not true & heard:
        raise UserError(
            f"{hypothesis.path} and {reference.path} have no session in common: {_listed(heard)}, and {_listed(true)}; rename "
            "the sessions of one file"
        )
    if unknown := [session for session in heard if session not in true]:
        raise UserError(f"{hypothesis.path} has sessions that {reference.path} lacks: {_listed(unknown)}; leave them out")
    lacking = [session for session in true if session not in heard]
    if lacking and not settings.missing_is_empty:
        raise UserError(
            f"{hypothesis.path} lacks sessions of {reference.path}: {_listed(lacking)}; add them, or count them as sessions "
            "where nothing was found with --missing-is-empty"
        )


def _listed(names: Any) -> str:
    """The first names and how many there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")


def _notes(hypothesis: SegmentFile, reference: SegmentFile) -> list[str]:
    """What of the two files was not scored."""
    notes = []
    for file in (hypothesis, reference):
        if file.skipped:
            notes.append(f"{file.path}: skipped {', '.join(f'{count} {name}' for name, count in file.skipped.items())} lines")
        if not file.has_words:
            notes.append(f"{file.path} has no words: DER and the number of speakers alone")
        if file.has_words and (sessions := [name for name, own in file.sessions().items() if _overlaps_itself(own)]):
            notes.append(f"{file.path}: segments of one speaker overlap; their words are not mixed: {_listed(sessions)}")
        if not file.has_times:
            notes.append(f"{file.path} has no times: no {TCP}, {TCORC} and DER; its segments are taken in the file's order")
    return notes


def _overlaps_itself(segments: Sequence[SpeakerSegment]) -> bool:
    """Whether two segments of one speaker overlap."""
    ends: dict[str, float] = {}
    for segment in sorted((one for one in segments if one.start_time is not None), key=lambda one: one.span):
        start, end = segment.span
        if start < ends.get(segment.speaker, start):
            return True
        ends[segment.speaker] = end
    return False


def _limits(sessions: list[SceneScores]) -> list[str]:
    """Which measures are bounds, and which are missing."""
    notes = []
    for measure in MEASURES:
        scored = [(scores.session, scores.words.get(measure)) for scores in sessions if measure in scores.words]
        if none := [session for session, found in scored if found is None]:
            notes.append(f"{measure}: more than {MOST_SPEAKERS[measure]} speakers in {_listed(none)}, so there is no total")
        if greedy := [session for session, found in scored if found and found.greedy]:
            notes.append(f"{measure}: an upper bound by greedy search (too many words for the exact one) in {_listed(greedy)}")
    return notes


def _total(sessions: list[SceneScores]) -> SceneScores:
    """The scores of all sessions together. A measure that lacks a session has no total."""
    words: dict[str, ScoredTranscript | None] = {}
    for measure in sessions[0].words:
        found = [scores.words[measure] for scores in sessions]
        whole = [one for one in found if one is not None]
        counts = sum((one.counts for one in whole), TranscriptErrors())
        words[measure] = ScoredTranscript(counts, any(one.greedy for one in whole)) if len(whole) == len(found) else None
    times = [scores.diarization for scores in sessions if scores.diarization is not None]
    numbers = [scores.speakers for scores in sessions]
    speakers = sum(one[0] for one in numbers), sum(one[1] for one in numbers), sum(one[2] for one in numbers)
    return SceneScores("total", words, sum(times, DiarizationErrors()) if times else None, speakers)


def _to_json(scores: SceneScores) -> dict[str, Any]:
    """The scores of one session as JSON holds them."""
    record: dict[str, Any] = {}
    for measure, found in scores.words.items():
        counts = found and {"rate": found.counts.rate, "errors": found.counts.errors, **asdict(found.counts)}
        record[measure] = found and {**counts, "greedy": found.greedy, "speakers": found.speakers}  # type: ignore[dict-item]
    if scores.diarization is not None:
        record["DER"] = {"rate": scores.diarization.rate, **asdict(scores.diarization)}
    names = ("hypothesis", "reference", "sessions_right")
    return {**record, "speakers": dict(zip(names, scores.speakers, strict=True))}
