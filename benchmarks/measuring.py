"""What all benchmarks share: timing, peak memory, and the header and file of their results."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mtbi import versions


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_gib() -> float:
    """The peak memory of this process in GiB, without that of its parent (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) / 2**20  # type: ignore[index]


def header(*packages: str) -> dict[str, Any]:
    """The date, command, hardware, package versions and commit of a run."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "hardware": f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), no GPU",
        "versions": {package: versions.installed(package) for package in packages},
        "commit": versions.commit(),
    }


def save(record: dict[str, Any], out: Path) -> None:
    """Write OUT/results.json, over the results of an earlier run."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
