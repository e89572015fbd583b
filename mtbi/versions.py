"""The versions of what runs: this repository's commit, and the installed packages."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path


def commit() -> str:
    """The repository's commit, with `+` if files were changed since. Outside a repository, the version of the package mtbi."""
    folder = Path(__file__).parents[1]
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return metadata.version("mtbi")


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
