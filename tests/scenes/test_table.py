from __future__ import annotations

from mtbi.scenes.diarization import DiarizationErrors
from mtbi.scenes.score import SceneReport, SceneScores, ScoreSettings
from mtbi.scenes.table import render
from mtbi.scenes.word_errors import ScoredTranscript, TranscriptErrors


def test_bounds_and_missing_scores_are_marked() -> None:
    words = {
        "cpWER": ScoredTranscript(TranscriptErrors(8, 1, 2, 1)),
        "ORC-WER": ScoredTranscript(TranscriptErrors(8, 1, 0, 0), greedy=True),
        "tcORC-WER": None,
    }
    scores = SceneScores("meeting", words, None, (2, 3, 0))
    total = SceneScores("total", words, None, (2, 3, 0))
    assert render(SceneReport([scores], total, ScoreSettings(collar=2.5), ["a note"])).splitlines() == [
        "session  words  cpWER  ORC-WER  tcORC-WER  cpWER: S D I  speakers",
        "meeting      8  50.00  ≤ 12.50          –         1 2 1       2/3",
        "-----------------------------------------------------------------",
        "total        8  50.00  ≤ 12.50          –         1 2 1       2/3",
        "",
        "in per cent; texts as written; tcORC-WER with a collar of 2.5 s; the number of speakers is right in 0 of 1 sessions",
        "a note",
    ]


def test_a_session_without_speech_has_no_rates() -> None:
    silent = SceneScores("m1", {}, DiarizationErrors(0, 0, 4, 0), (1, 0, 0))
    lines = render(SceneReport([silent], silent, ScoreSettings(), [])).splitlines()
    assert lines[1].split() == ["m1", "–", "–", "–", "–", "1/0"]
