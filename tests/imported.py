"""Recordings to import, and the records that an import rejected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile


def write_noise(path: Path, seconds: float, rate: int = 16_000, channels: int = 1, level: float = 0.3) -> str:
    """Write a recording of noise. Returns its file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-level, level, (round(seconds * rate), channels)), rate)
    return path.name


def rejected(out: Path) -> dict[str, str]:
    """The reason for each id in `rejected.jsonl`."""
    lines = (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record["reason"] for record in map(json.loads, lines)}


def rejected_kinds(out: Path) -> dict[str, str]:
    """The part of the reason that summaries count, for each id in `rejected.jsonl`."""
    return {name: reason.split(":")[0] for name, reason in rejected(out).items()}
