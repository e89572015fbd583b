"""A wrong input: how it is made, the command that meets it, and what its one message must say."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import soundfile

from mtbi.cli import main


@dataclass(frozen=True)
class World:
    """Good things of a moment's work, which no case changes."""

    corpus: str  #: manifest of one second of a tone, "one two three", not aligned
    answers: str  #: two tasks about it
    shards: str
    run: str  #: with a checkpoint of an untrained adapter; hears at most 5 seconds


@dataclass(frozen=True)
class Case:
    """`make` runs in an empty folder, then the command in the same; `$corpus` and the like stand for parts of the world."""

    id: str
    command: str
    says: tuple[str, ...]  #: what is wrong, where, and the remedy
    make: Callable[[World], object] = lambda _: None


def answer(case: Case, world: World) -> int:
    """Make the input and run the command; returns its exit status."""
    case.make(world)
    return main(shlex.split(Template(case.command).substitute(vars(world))))


def tone(seconds: float) -> bytes:
    """A WAV file of 16 bits at 16 kHz."""
    buffer = BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(int(16_000 * seconds)) * 0.1), 16_000, format="WAV")
    return buffer.getvalue()


def file(name: str, content: str | bytes = "") -> Callable[[World], object]:
    """Makes a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda _: Path(name).write_bytes(data)


def folder(name: str) -> Callable[[World], object]:
    """Makes an empty folder."""
    return lambda _: Path(name).mkdir()


def copied(part: str) -> Callable[[World], object]:
    """Copies a part of the world under the same name."""
    return lambda world: shutil.copytree(getattr(world, part), part)


def damaged(part: str, pattern: str, change: Callable[[bytes], bytes] | None = None) -> Callable[[World], object]:
    """The same, with some files changed, or without them."""

    def make(world: World) -> None:
        copied(part)(world)
        for path in Path(part).glob(pattern):
            path.write_bytes(change(path.read_bytes())) if change else path.unlink()

    return make


def both(*makers: Callable[[World], object]) -> Callable[[World], object]:
    """Makes several things."""
    return lambda world: [make(world) for make in makers]


def lines(name: str, *records: Any) -> Callable[[World], object]:
    """Makes a JSONL file; text stands in it as it is."""
    return file(name, "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
