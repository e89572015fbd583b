"""One part of each kind that a package can add to mtbi. It imports nothing heavy: mtbi reads it for the task library."""

from pathlib import Path

LIBRARY = Path(__file__).with_name("tasks.yaml")
