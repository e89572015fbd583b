"""From the layouts that speech corpora come in to one checked manifest.

An importer yields utterances with absolute audio paths, and a `Rejected` for each record that it cannot make an utterance of.
Shipped ones are in `IMPORTERS`; a package adds its own by an entry point of the group `mtbi.importers` (docs/plugins.md).
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mtbi import plugins
from mtbi.data import text_units
from mtbi.data.corpus import (
    Limits,
    Rejected,
    Utterance,
    check,
    count_reasons,
    decode_text,
    relocate,
    scan_manifest,
    write_lines,
    write_manifest,
)
from mtbi.data.truecase import TextStyle, style
from mtbi.demo.world import DIGITS
from mtbi.errors import UserError

Record = Utterance | Rejected
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf"}
FSDD_NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.(?:wav|flac)")
FSDD_UNSEEN_SPEAKER = "theo"
FSDD_TEST_NUMBERS = range(40, 50)


def import_folder(source: Path) -> Iterator[Record]:
    """Audio files at any depth, each with its transcript in a `.txt` file of the same name.

    The first folder below `source` is the speaker.
    """
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file()):
        place = path.relative_to(source)
        name = str(place.with_suffix(""))
        try:
            text = decode_text(path.with_suffix(".txt").read_bytes())
        except FileNotFoundError:
            yield Rejected(id=name, audio=str(path), reason=f"no transcript: {path.with_suffix('.txt').name} is not beside it")
        except UserError as error:
            yield Rejected(id=name, audio=str(path), reason=f"transcript {error}")
        else:
            yield Utterance(name, str(path), text, speaker=place.parts[0] if len(place.parts) > 1 else "")


def import_librispeech(source: Path) -> Iterator[Record]:
    """`SPEAKER-CHAPTER.trans.txt` files at any depth with lines `ID TEXT`, and `ID.flac` beside them."""
    for transcript in sorted(source.rglob("*.trans.txt")):
        split = next((part for part in transcript.parts[::-1] if part.startswith(("train-", "dev-", "test-"))), "")
        for number, line in enumerate(transcript.read_bytes().splitlines(), 1):
            try:
                name, _, text = decode_text(line).partition(" ")
            except UserError as error:
                yield Rejected(id=f"{transcript.name}:{number}", audio="", reason=str(error))
                continue
            if name:
                path, speaker = transcript.parent / f"{name}.flac", f"ls-{name.split('-')[0]}"
                yield Utterance(f"ls-{name}", str(path), text, speaker, language="en", split=split)


def import_commonvoice(source: Path) -> Iterator[Record]:
    """One language's folder with `clips/` and `train.tsv`, `dev.tsv`, `test.tsv` (or `validated.tsv`); or one TSV file."""
    folder = source.parent if source.is_file() else source
    tables = (
        [source]
        if source.is_file()
        else [path for part in ("train", "dev", "test") if (path := folder / f"{part}.tsv").is_file()]
    )
    tables = tables or [path for path in [folder / "validated.tsv"] if path.is_file()]
    for table in tables:
        header, *lines = table.read_bytes().splitlines() or [b""]
        columns = decode_text(header).split("\t")
        if not {"client_id", "path", "sentence"} <= set(columns):
            raise UserError(
                f"{table}: not a Common Voice table, the columns client_id, path and sentence are not all in its first line"
            )
        for number, line in enumerate(lines, 2):
            where = Rejected(id=f"{table.name}:{number}", audio="")
            try:
                row = next(csv.DictReader([decode_text(line)], columns, delimiter="\t", quoting=csv.QUOTE_NONE), None)
            except UserError as error:
                yield where | {"reason": str(error)}
                continue
            if row and not (row["path"] and row["client_id"]):
                yield where | {"reason": f"bad record: no path or client_id in line {number} of {table.name}"}
            elif row:
                path = folder / "clips" / Path(row["path"]).name
                name, speaker = f"cv-{path.stem}", f"cv-{row['client_id'][:16]}"
                yield Utterance(
                    name, str(path), row["sentence"] or "", speaker, language=row.get("locale") or "", split=table.stem
                )


def import_fsdd(source: Path) -> Iterator[Record]:
    """The Free Spoken Digit Dataset, `{digit}_{speaker}_{n}.wav` or `.flac` at any depth.

    Speaker theo is `test_unseen`; recordings 40 to 49 of the others are `test_known`; the rest is `train`.
    """
    for path in sorted(source.rglob("*_*_*.*")):
        if found := FSDD_NAME.fullmatch(path.name):
            digit, speaker, number = found.groups()
            known = "test_known" if int(number) in FSDD_TEST_NUMBERS else "train"
            split = "test_unseen" if speaker == FSDD_UNSEEN_SPEAKER else known
            yield Utterance(f"fsdd-{path.stem}", str(path), DIGITS[int(digit)], f"fsdd-{speaker}", language="en", split=split)


def import_jsonl(source: Path) -> Iterator[Record]:
    """A manifest, or the folder that holds `manifest.jsonl`; also with NeMo's and lhotse's keys (`audio_filepath`)."""
    path = source / "manifest.jsonl" if source.is_dir() else source
    utterances, rejected = scan_manifest(path)
    yield from rejected
    for utterance in utterances:
        yield replace(utterance, audio=os.path.abspath(path.parent / utterance.audio))


Importer = Callable[[Path], Iterable[Record]]
IMPORTERS: dict[str, Importer] = {
    "folder": import_folder,
    "librispeech": import_librispeech,
    "commonvoice": import_commonvoice,
    "fsdd": import_fsdd,
    "jsonl": import_jsonl,
}


@dataclass(frozen=True)
class Summary:
    """What an import kept and left out."""

    kept: int  #: utterances
    rejected: int  #: records
    hours: float  #: of the utterances kept
    speakers: int
    reasons: dict[str, int]  #: records rejected by reason, the commonest first
    single: int = 0  #: utterances of one word, or one character where the script has no spaces

    def __str__(self) -> str:
        lines = [f"kept {self.kept} utterances ({self.hours:.2f} h, {self.speakers} speakers), rejected {self.rejected}"]
        if self.single:
            lines.append(
                f"{self.single} of them ({self.single / self.kept:.1%}) have one word only: they cannot be interleaved"
            )
        return "\n".join(lines + [f"  {count:8d}  {reason}" for reason, count in self.reasons.items()])


def import_corpus(
    kind: str,
    source: Path | str,
    out: Path | str,
    text_style: str | None = None,
    limits: Limits | None = None,
    allow_outside: bool = False,
) -> Summary:
    """Write `manifest.jsonl` and `rejected.jsonl` in the folder `out`.

    `text_style` names a step of `mtbi.data.truecase`. `allow_outside` accepts recordings outside the source folder, which
    manifests from elsewhere may name. Raises UserError for an unknown kind, a missing source, or when nothing can be used.
    """
    source, out, write = Path(os.path.abspath(source)), Path(out), style(text_style or "none")
    importer: Importer = plugins.find(plugins.IMPORTERS, kind, IMPORTERS, "corpus kind")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    records = list(importer(source))
    if not records:
        raise UserError(f"{source}: nothing found. The kind {kind!r} expects: {' '.join((importer.__doc__ or '').split())}")
    rejected = [record for record in records if not isinstance(record, Utterance)]
    base = Path(os.path.abspath(source.parent if source.is_file() else source))
    good = []
    for record in records:
        if not isinstance(record, Utterance):
            continue
        if allow_outside or Path(os.path.abspath(record.audio)).is_relative_to(base):
            good.append(restyle(record, write))
        else:
            reason = f"outside: the audio does not lie in {base}; allow it with --allow-outside if you trust the manifest"
            rejected.append(Rejected(id=record.id, audio=record.audio, reason=reason))
    good, unfit = check(good, base, limits)
    rejected += unfit
    reasons = count_reasons(rejected)
    write_lines(out / "rejected.jsonl", rejected)
    if not good:
        raise UserError(f"{source}: none of the {len(rejected)} records can be used ({reasons}); see {out / 'rejected.jsonl'}")
    write_manifest(out / "manifest.jsonl", (relocate(utterance, base, out) for utterance in good))
    hours = sum(utterance.duration_s for utterance in good) / 3600
    single = sum(text_units.count(utterance.text) == 1 for utterance in good)
    return Summary(len(good), len(rejected), hours, len({u.speaker for u in good}), reasons, single)


def restyle(utterance: Utterance, write: TextStyle) -> Utterance:
    """The transcript in another spelling, in NFC, with single spaces; word times are kept if the words or their number are."""
    text = text_units.join(text_units.units(write(utterance.text)))
    words, units = utterance.words, text_units.units(text)
    if words is not None and text_units.join([text_units.nfc(word) for word, _, _ in words]) != text:
        same = len(words) == len(units)
        words = [(new, start, end) for new, (_, start, end) in zip(units, words, strict=True)] if same else None
    return replace(utterance, text=text, words=words)
