"""The summary of an import: each file below the source is kept, rejected with a reason, or no sound."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtbi import text_units
from mtbi.audio import members
from mtbi.audio.sound_files import is_sound
from mtbi.corpus import paths
from mtbi.corpus.manifest import Rejected, Utterance, count_reasons


@dataclass(frozen=True)
class Summary:
    """The numbers of an import."""

    kept: int  #: utterances
    rejected: int  #: records, files that no record names, and folders that were not read
    hours: float  #: of the utterances kept
    speakers: int
    reasons: dict[str, int]  #: rejected records by reason, the commonest first
    files: int = 0  #: below the source, if that is a folder; the sum of the next three
    files_kept: int = 0
    files_rejected: int = 0
    no_sound: dict[str, int] = field(default_factory=dict)  #: files that are no sound, by ending
    splits: dict[str, int] = field(default_factory=dict)  #: utterances kept by split
    tagged: int = 0  #: transcripts kept with tags such as [noise] in them
    shared: int = 0  #: utterances kept that begin where an earlier utterance of the same recording begins
    single: int = 0  #: utterances kept that have one word, or one character where the script has no spaces

    def __str__(self) -> str:
        lines = [f"kept {self.kept} utterances ({self.hours:.2f} h, {self.speakers} speakers), rejected {self.rejected}"]
        lines += [f"  {count:8d}  {reason}" for reason, count in self.reasons.items()]
        if self.files:
            others = sum(self.no_sound.values())
            listed = f" ({counted(self.no_sound)})" if others else ""
            lines.append(
                f"{self.files} files: {self.files_kept} kept, {self.files_rejected} rejected, {others} no sound{listed}"
            )
        if len(self.splits) > 1:
            lines.append(f"splits: {counted(self.splits)}; choose with --split")
        if self.tagged:
            lines.append(f"{self.tagged} transcripts hold tags such as [noise]; --strip-tags takes them out")
        if self.shared:
            lines.append(f"{self.shared} utterances repeat the recording of another one")
        if self.single:
            share = self.single / self.kept
            lines.append(f"{self.single} utterances ({share:.1%}) have one word only: they cannot be interleaved")
        return "\n".join(lines)


def counted(numbers: Mapping[str, int]) -> str:
    """`3 .txt, 1 .md`, the commonest first."""
    return ", ".join(f"{count} {name or 'without a name'}" for name, count in Counter(numbers).most_common())


def endings(files: Iterable[Path]) -> dict[str, int]:
    """The number of files with each ending."""
    names = (path.suffix.lower().encode(errors="replace").decode() or "without an ending" for path in files)
    return dict(Counter(names).most_common())


def unique(utterances: Iterable[Utterance]) -> tuple[list[Utterance], list[Rejected]]:
    """The first utterance of each id, and the later ones as rejected."""
    first: dict[str, Utterance] = {}
    repeated = []
    for utterance in utterances:
        known = first.setdefault(utterance.id, utterance)
        if known is not utterance:
            repeated.append(Rejected(id=utterance.id, audio=utterance.audio, reason=f"id used before: by {known.audio}"))
    return list(first.values()), repeated


def unlisted(walk: paths.Walk, base: Path, named: Iterable[str]) -> list[Rejected]:
    """Sound files that no record names, and folders that were not read, as rejected. `named` paths start from `base`."""
    known = _absolute(base, named)
    missing = [path for path in walk.files if is_sound(path) and str(path) not in known]
    if missing:  # a record may name the file by another way through links
        real = {os.path.realpath(path) for path in known}
        missing = [path for path in missing if os.path.realpath(path) not in real]
    reason = "not listed: no transcript or record names this file"
    files = [Rejected(id=str(path.relative_to(base).with_suffix("")), audio=str(path), reason=reason) for path in missing]
    return files + [Rejected(id=str(path.relative_to(base)), audio=str(path), reason=why) for path, why in walk.unread]


def _absolute(base: Path, named: Iterable[str]) -> set[str]:
    """Absolute paths of files, or of archives with recordings. Empty paths and paths with a NUL are left out."""
    return {os.path.abspath(base / members.file_of(path)) for path in named if path and "\0" not in path}


def summarise(
    good: Sequence[Utterance], rejected: Sequence[Rejected], walk: paths.Walk, base: Path, tagged: int = 0
) -> Summary:
    """The numbers of an import. Relative paths of its records start from `base`."""
    kept = _absolute(base, (utterance.audio for utterance in good))
    left_out = _absolute(base, (record["audio"] for record in rejected))
    kept_files = [path for path in walk.files if str(path) in kept]
    left_out_files = [path for path in walk.files if str(path) in left_out - kept]
    places = [(utterance.audio, utterance.start_s) for utterance in good if utterance.audio]
    named = {*kept_files, *left_out_files}
    others = [path for path in walk.files if path not in named]
    if any(map(is_sound, others)):  # named by another way through links, see `unlisted`
        real = {os.path.realpath(path) for path in kept}
        linked = [path for path in others if is_sound(path)]
        kept_files += [path for path in linked if os.path.realpath(path) in real]
        left_out_files += [path for path in linked if os.path.realpath(path) not in real]
        others = [path for path in others if not is_sound(path)]
    return Summary(
        kept=len(good),
        rejected=len(rejected),
        hours=sum(utterance.duration_s for utterance in good) / 3600,
        speakers=len({utterance.speaker for utterance in good}),
        reasons=count_reasons(rejected),
        files=len(walk.files),
        files_kept=len(kept_files),
        files_rejected=len(left_out_files),
        no_sound=endings(others),
        single=sum(text_units.count(utterance.text) == 1 for utterance in good),
        splits=dict(Counter(utterance.split for utterance in good).most_common()),
        tagged=tagged,
        shared=len(places) - len(set(places)),
    )
