"""A wrong input: how to make it, the command to run on it, and the error message that must follow."""

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
    """Paths of small valid inputs. No case changes them."""

    corpus: str  #: manifest of one recording: a tone of one second with the transcript "one two three", not aligned
    answers: str  #: to two tasks about the recording
    shards: str
    run: str  #: a run with a checkpoint of an untrained adapter, for at most 5 seconds of speech


@dataclass(frozen=True)
class Case:
    """One row of a case table. `$corpus` and the like in the command stand for parts of the world."""

    id: str
    command: str
    message: tuple[str, ...]  #: parts of the error message: what is wrong, where, and the remedy
    make: Callable[[World], object] = lambda _: None  #: makes the input in the current folder, which is empty


def run(case: Case, world: World) -> int:
    """Make the input and run the command. Returns the exit status."""
    case.make(world)
    return main(shlex.split(Template(case.command).substitute(vars(world))))


def tone(seconds: float) -> bytes:
    """A tone as a WAV file, 16 bits at 16 kHz."""
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
    """Copies a part of the world and changes the files of a pattern, or deletes them without `change`."""

    def make(world: World) -> None:
        copied(part)(world)
        for path in Path(part).glob(pattern):
            path.write_bytes(change(path.read_bytes())) if change else path.unlink()

    return make


def both(*makers: Callable[[World], object]) -> Callable[[World], object]:
    """Makes several things."""
    return lambda world: [make(world) for make in makers]


def lines(name: str, *records: Any) -> Callable[[World], object]:
    """Makes a JSONL file. A record that is text becomes a line as it is."""
    return file(name, "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
