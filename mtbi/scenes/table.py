"""The scores of scenes as a table of text."""

from __future__ import annotations

from mtbi.scenes.score import NORMALISERS, SceneReport, SceneScores
from mtbi.scenes.word_errors import CP, TCORC, TCP, ScoredTranscript


def render(report: SceneReport) -> str:
    """A table with a line for each session and one for all, what the columns are, and the notes. Rates are in per cent."""
    measures = list(report.total.words)
    timed = report.total.diarization is not None
    header = ["session", *(["words"] if measures else []), *measures, *([f"{CP}: S D I"] if CP in measures else [])]
    header += [*(["DER", "missed", "false alarm", "confusion"] if timed else []), "speakers"]
    rows = [header, *(_row(scores) for scores in (*report.sessions, report.total))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(len(lines) - 1, "-" * len(lines[0]))
    return "\n".join([*lines, "", _legend(report), *report.notes])


def _row(scores: SceneScores) -> list[str]:
    """The cells of a line."""
    cells = [scores.session]
    if scores.words:
        known = next((found for found in scores.words.values() if found), None)
        cells.append(str(known.counts.words) if known else "–")
        cells += [_rate(found) for found in scores.words.values()]
    if CP in scores.words:
        found = scores.words[CP]
        cells.append(f"{found.counts.substitutions} {found.counts.deletions} {found.counts.insertions}" if found else "–")
    if scores.diarization is not None:
        times = scores.diarization
        for seconds in (times.missed + times.false_alarm + times.confusion, times.missed, times.false_alarm, times.confusion):
            cells.append(f"{100 * seconds / times.speech:.2f}" if times.speech else "–")
    return [*cells, f"{scores.speakers[0]}/{scores.speakers[1]}"]


def _rate(found: ScoredTranscript | None) -> str:
    """An error rate in per cent; `≤` before an upper bound."""
    if found is None or found.counts.rate is None:
        return "–"
    return ("≤ " if found.greedy else "") + f"{100 * found.counts.rate:.2f}"


def _legend(report: SceneReport) -> str:
    """What the numbers are."""
    settings, parts = report.settings, ["in per cent"]
    if report.total.words:
        parts.append(NORMALISERS[settings.normaliser][1])
    if timed := [name for name in (TCP, TCORC) if name in report.total.words]:
        parts.append(f"{' and '.join(timed)} with a collar of {settings.collar:g} s")
    if report.total.diarization is not None:
        parts.append(f"DER with a collar of {settings.der_collar:g} s on each side of a boundary, overlap included")
    right, count = report.total.speakers[2], len(report.sessions)
    return "; ".join([*parts, f"the number of speakers is right in {right} of {count} sessions"])
