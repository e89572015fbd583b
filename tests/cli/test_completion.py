"""What the Tab key offers, asked as bash asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def offers(line: str, folder: Path) -> list[str]:
    """The completions of a command line that ends with the cursor."""
    answer = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [str(Path(sys.executable).with_name("mtbi"))]
    done = subprocess.run(command, env={**os.environ, **asked}, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [offer.strip() for offer in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mtbi data st", ["stats"]),
        ("mtbi behave m.jsonl out --recipe whisper-large-v3_q", ["whisper-large-v3_qwen3-8b"]),
        ("mtbi plan demo train.ste", ["train.steps="]),
        ("mtbi behave m.jsonl out --recipe demo behaviour.wordings", ["behaviour.wordings=", "behaviour.wordings_per_task="]),
        ("mtbi plan demo data.unreadable=", ["stop", "skip"]),
        ("mtbi tasks list dig", ["digits"]),
    ],
)
def test_commands_recipes_fields_and_values(line: str, expected: list[str], tmp_path: Path) -> None:
    assert offers(line, tmp_path) == expected


def test_recipes_of_the_folder_are_offered_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: demo\n")
    assert set(offers("mtbi plan ", tmp_path)) >= {"demo", "mine.yaml", "--gpus"}
