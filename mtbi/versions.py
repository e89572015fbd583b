"""Which code runs: this repository's commit, and the packages' versions."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path


def commit() -> str:
    """The commit of the repository that runs, `+` where files differ from it; the package's version elsewhere."""
    folder = Path(__file__).parents[1]
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return metadata.version("mtbi")


def installed(package: str) -> str | None:
    """A package's version; None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
