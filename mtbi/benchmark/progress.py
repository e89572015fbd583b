"""How far an evaluation is: a bar on a terminal, and lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

LINE_EVERY_SECONDS = 30.0


class EvaluationProgress:
    """Counts dialogues. Where standard error is no terminal, it writes a line now and then instead of a bar."""

    def __init__(self, name: str, total: int, every_seconds: float = LINE_EVERY_SECONDS, out: TextIO | None = None) -> None:
        """`total` is about how many dialogues there are; 0 = not known."""
        self.name, self.total, self.every_seconds = name, total, every_seconds
        self.out = sys.stderr if out is None else out
        self.done = self.answers = self.cut_off = 0
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(desc=name, total=total or None, unit="dialogue", file=self.out, disable=None)

    def __enter__(self) -> EvaluationProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
        if self.bar.disable and kind is None:
            self._write(f"{self.name}: {self.done} dialogues in {_duration(self._seconds())}, {self._run_away()}")

    def answered(self, source: str, answers: int, cut_off: int) -> None:
        """Count answers of a batch whose other answers may still be to come."""
        self.answers, self.cut_off = self.answers + answers, self.cut_off + cut_off
        self.bar.set_postfix_str(f"{source}, {self._run_away()}", refresh=False)
        self._line(f"asked: {source}")

    def finished(self, dialogues: int) -> None:
        """Count dialogues that have all their answers."""
        self.done += dialogues
        self.bar.update(dialogues)
        self._line("")

    def _line(self, stage: str) -> None:
        if not self.bar.disable or time.monotonic() - self.last_line < self.every_seconds:
            return
        self.last_line = time.monotonic()
        parts = [f"{self.done} of about {max(self.total, self.done)} dialogues" if self.total else f"{self.done} dialogues"]
        parts += [stage, f"{_duration(self._seconds())} so far", self._left(), self._run_away()]
        self._write(f"{self.name}: {', '.join(filter(None, parts))}")

    def _left(self) -> str:
        if not self.done or not self.total:
            return ""
        return f"about {_duration(self._seconds() * max(0, self.total - self.done) / self.done)} left"

    def _run_away(self) -> str:
        return f"{self.cut_off} of {self.answers} answers cut off" if self.answers else "no new answer"

    def _seconds(self) -> float:
        return time.monotonic() - self.start

    def _write(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def _duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
