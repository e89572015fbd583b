"""Work that hangs or ends too early only if several processes do it together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from engine.conftest import run_pair

SCRIPT = str(Path(__file__).with_name("together.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "lines"),
    [
        ("answers", ["rank 0: 3 tokens", "rank 1: 12 tokens"]),
        ("upload", ["rank 0: left after the copy", "rank 1: left after the copy"]),
    ],
)
def test_two_processes(work: str, lines: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    outputs = run_pair([sys.executable, SCRIPT, work, str(tmp_path)], environment)
    for (output, errors), line in zip(outputs, lines, strict=True):
        assert line in output, output[-3000:] + errors[-3000:]
