"""A manifest that is rewritten with more fields, in one piece or in parts by an array job."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mtbi.corpus.manifest import ManifestSlice, Utterance, read_manifest, relocate, write_manifest
from mtbi.errors import UserError

Change = Callable[
    [Iterable[Utterance], Path], Iterator[Utterance]
]  #: of utterances whose relative audio paths start at a folder


def rewrite(manifest: Path | str, out: Path | str, change: Change, part: ManifestSlice | None = None) -> list[Utterance]:
    """Write the manifest `out` with changed utterances, and audio paths that fit its folder. Returns the utterances written.

    A `part` is written once, into a file of its own beside `out`. The process that finishes the last part joins all parts in
    `out`. Raises UserError where a part exists that was made from another manifest.
    """
    folder, target = Path(manifest).parent, Path(out)
    utterances = read_manifest(manifest)
    path = part_file(target, part) if part else target
    if part and path.exists():
        written = read_manifest(path)
        check_same_utterances(path, written, part.take(utterances))
    else:
        changed = change(part.take(utterances) if part else utterances, folder)
        written = [relocate(utterance, folder, Path(os.path.abspath(target.parent))) for utterance in changed]
        write_manifest(path, written)
    if part and all(part_file(target, sibling).exists() for sibling in part.siblings()):
        joined = []
        for sibling in part.siblings():
            joined += (finished := read_manifest(part_file(target, sibling)))
            check_same_utterances(part_file(target, sibling), finished, sibling.take(utterances))
        write_manifest(target, joined)
    return written


def check_same_utterances(path: Path, written: list[Utterance], wanted: list[Utterance]) -> None:
    """Raises UserError where a finished part has other utterances or transcripts than the manifest."""
    if [(utterance.id, utterance.text) for utterance in written] != [(utterance.id, utterance.text) for utterance in wanted]:
        raise UserError(f"{path}: this part was made from another manifest; delete it, and run its command again.")


def part_file(target: Path, part: ManifestSlice) -> Path:
    """The path of a part of the manifest `target`."""
    return target.with_name(f"{target.stem}.{part}{target.suffix}")
