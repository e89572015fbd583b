"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of small public recordings (`MTBI_SPEECH`, or `shared/speech` beside the repository)."""
    folder = Path(os.environ.get("MTBI_SPEECH") or Path(__file__).parents[2] / "shared" / "speech")
    if not (folder / "fsdd" / "manifest.jsonl").is_file():
        message = f"the recordings are not at {folder}: set MTBI_SPEECH to the folder that holds fsdd/, ljspeech_samples/, …"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder
