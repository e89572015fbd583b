"""Work that hangs or ends too early only if several processes do it together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from engine.conftest import run_pair

from mtbi.engine import checkpoint

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


@pytest.mark.slow
def test_training_goes_on_while_a_checkpoint_is_written(environment: dict[str, str], tmp_path: Path) -> None:
    for output, errors in run_pair([sys.executable, SCRIPT, "behind", str(tmp_path)], environment):
        assert "ended while a checkpoint was written" in output, output[-3000:] + errors[-3000:]
    # The process has ended in the middle of step 10. The run goes on from the checkpoint before it.
    assert (tmp_path / "checkpoints" / ".step-00000010.partial").exists()
    assert checkpoint.latest_valid(tmp_path) == checkpoint.folder_of(tmp_path, 6)
    assert [folder.name for folder in checkpoint.all_of(tmp_path)] == ["step-00000004", "step-00000006"]
