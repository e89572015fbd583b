"""A manifest that is rewritten with more fields, or checked, in one piece or in parts by an array job."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mtbi.audio import sound_files
from mtbi.corpus.manifest import (
    ManifestSlice,
    Rejected,
    Utterance,
    parse,
    read_manifest,
    relocate,
    write_lines,
    write_manifest,
)
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
    utterances = read_manifest(manifest, part)
    path = part_file(target, part) if part else target
    if part and path.exists():
        written = read_manifest(path)
        check_same_utterances(path, written, utterances)
    else:
        changed = change(utterances, folder)
        written = [relocate(utterance, folder, Path(os.path.abspath(target.parent))) for utterance in changed]
        write_manifest(path, written)
    if part and all_written(target, part):
        write_manifest(target, joined(manifest, target, part))
    return written


def all_written(target: Path, part: ManifestSlice) -> bool:
    """Whether each part of the manifest `target` is there."""
    return all(part_file(target, sibling).exists() for sibling in part.siblings())


def joined(manifest: Path | str, target: Path, part: ManifestSlice) -> Iterator[Utterance]:
    """The utterances of all parts. One part is in memory at a time. Raises UserError for a part of another manifest."""
    for sibling in part.siblings():
        finished = read_manifest(part_file(target, sibling))
        check_same_utterances(part_file(target, sibling), finished, read_manifest(manifest, sibling))
        yield from finished


Checked = tuple[list[Utterance], list[Rejected]]  #: what an import keeps, and what it rejects


def check_part(
    utterances: list[Utterance], folder: Path, out: Path, part: ManifestSlice, check: Callable[[list[Utterance]], Checked]
) -> tuple[Checked, Checked | None]:
    """What `check` says about a part of an import's utterances, and about all of them; None where another part is missing.

    A part is checked once, and written as two files in `out`. Relative audio paths start from `folder`. Raises UserError where
    a part exists that was made from other utterances.
    """
    target = out / "manifest.jsonl"
    if not part_file(target, part).exists():
        good, unfit = check(part.take(utterances))
        write_lines(part_file(out / "rejected.jsonl", part), unfit)
        write_manifest(part_file(target, part), (relocate(utterance, folder, out) for utterance in good))
    own = read_checked(out, part, part.take(utterances))
    if not all_written(target, part):
        return own, None
    parts = [own if sibling == part else read_checked(out, sibling, sibling.take(utterances)) for sibling in part.siblings()]
    return own, ([one for good, _ in parts for one in good], [one for _, unfit in parts for one in unfit])


def read_checked(out: Path, part: ManifestSlice, wanted: list[Utterance]) -> Checked:
    """A part that was checked, with absolute audio paths. Raises UserError where its utterances are not those `wanted`."""
    path = part_file(out / "manifest.jsonl", part)
    rejected = [json.loads(line) for line in read_lines(part_file(out / "rejected.jsonl", part))]
    good = [parse(json.loads(line)) for line in read_lines(path)]
    texts = {(utterance.id, utterance.text) for utterance in wanted}
    known = Counter([utterance.id for utterance in good] + [record["id"] for record in rejected])
    if known != Counter(one.id for one in wanted) or not {(one.id, one.text) for one in good} <= texts:
        raise other_manifest(path)
    return [replace(one, audio=sound_files.below(out, one.audio)) if one.audio else one for one in good], rejected


def read_lines(path: Path) -> list[str]:
    """The lines of a file."""
    with path.open(encoding="utf-8") as file:
        return list(file)


def check_same_utterances(path: Path, written: list[Utterance], wanted: list[Utterance]) -> None:
    """Raises UserError where a finished part has other utterances or transcripts than the manifest."""
    if [(utterance.id, utterance.text) for utterance in written] != [(utterance.id, utterance.text) for utterance in wanted]:
        raise other_manifest(path)


def other_manifest(path: Path) -> UserError:
    """The error for a part that does not fit the others."""
    return UserError(f"{path}: this part was made from another manifest; delete it, and run its command again.")


def part_file(target: Path, part: ManifestSlice) -> Path:
    """The path of a part of the manifest `target`."""
    return target.with_name(f"{target.stem}.{part}{target.suffix}")
