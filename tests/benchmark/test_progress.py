from __future__ import annotations

from io import StringIO

import pytest

from mtbi.benchmark.progress import EvaluationProgress, _duration


def test_a_log_file_gets_lines() -> None:
    out = StringIO()
    with EvaluationProgress("dev", 40, every_seconds=0, out=out) as progress:
        progress.answered("speech LLM", 16, 4)
        progress.finished(16)
    first, second, last = out.getvalue().splitlines()
    assert first.startswith("dev: 0 of about 40 dialogues, asked: speech LLM, 0 s so far, 4 of 16 answers cut off")
    assert second.startswith("dev: 16 of about 40 dialogues, 0 s so far, about 0 s left")
    assert last == "dev: 16 dialogues in 0 s, 4 of 16 answers cut off"


def test_lines_are_rare() -> None:
    out = StringIO()
    with EvaluationProgress("dev", 0, out=out) as progress:
        for _ in range(5):
            progress.finished(1)
    assert out.getvalue() == "dev: 5 dialogues in 0 s, no new answer\n"


def test_a_failure_writes_no_last_line() -> None:
    out = StringIO()
    with pytest.raises(ValueError, match="stop"), EvaluationProgress("dev", 1, out=out):
        raise ValueError("stop")
    assert out.getvalue() == ""


def test_durations() -> None:
    assert [_duration(seconds) for seconds in (45.4, 720, 12_000)] == ["45 s", "12 min", "3 h 20 min"]
