"""From the layouts that speech corpora come in to one checked manifest.

An importer yields utterances with absolute audio paths, and a `Rejected` for each record that it cannot make an utterance of.
Shipped ones are in `IMPORTERS`; a package adds its own by an entry point of the group `mtbi.importers` (docs/plugins.md).
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mtbi import plugins, text_units
from mtbi.corpus import paths
from mtbi.corpus.manifest import (
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
from mtbi.corpus.summary import Summary, counted, endings, summarise, unique, unlisted
from mtbi.corpus.text_style import TAG, TextStyle, style
from mtbi.corpus.text_style import strip_tags as without_tags
from mtbi.demo.world import DIGITS
from mtbi.errors import UserError

Record = Utterance | Rejected
#: Names of text files that are no transcripts.
ABOUT_A_CORPUS = {"readme", "license", "licence", "copying", "changelog", "changes", "notice", "authors", "about", "speakers"}
FSDD_NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.(?:wav|flac)")
FSDD_UNSEEN_SPEAKER = "theo"
FSDD_TEST_NUMBERS = range(40, 50)


def import_folder(source: Path) -> Iterator[Record]:
    """Audio files at any depth, each with its transcript in a `.txt` file of the same name.

    The first folder below `source` is the speaker.
    """
    files = paths.walk(source).files
    texts = {path for path in files if path.suffix.lower() == ".txt"}
    by_name = {_same_name(path): path for path in sorted(texts)}
    used: set[Path] = set()
    for path in filter(paths.is_sound, files):
        place, beside = path.relative_to(source), path.with_suffix(".txt")
        name = str(place.with_suffix(""))
        transcript = beside if beside in texts else by_name.get(_same_name(path))
        if transcript is None:
            yield Rejected(id=name, audio=str(path), reason=f"no transcript: {beside.name} is not beside it")
            continue
        used.add(transcript)
        try:
            text = decode_text(paths.read_bytes(transcript))
        except UserError as error:
            yield Rejected(id=name, audio=str(path), reason=f"transcript {error}")
        except OSError as error:
            yield Rejected(id=name, audio=str(path), reason=f"transcript cannot be opened: {error.strerror}")
        else:
            yield Utterance(name, str(path), text, speaker=place.parts[0] if len(place.parts) > 1 else "")
    for path in sorted(texts - used):
        if path.stem.lower() not in ABOUT_A_CORPUS:
            name = str(path.relative_to(source))
            yield Rejected(id=name, audio="", reason=f"no recording: {path.name} has none of its name beside it")


def _same_name(path: Path) -> tuple[Path, str]:
    """Equal for files of one folder whose names without their endings are the same text: macOS writes it in another form."""
    return path.parent, unicodedata.normalize("NFC", path.stem)


def import_librispeech(source: Path) -> Iterator[Record]:
    """`SPEAKER-CHAPTER.trans.txt` files at any depth with lines `ID TEXT`, and `ID.flac` (or another ending) beside them."""
    files = paths.walk(source).files
    recordings = {(path.parent, path.stem): path for path in reversed(files) if paths.is_sound(path)}
    for transcript in (path for path in files if path.name.endswith(".trans.txt")):
        split = next((part for part in transcript.parts[::-1] if part.startswith(("train-", "dev-", "test-"))), "")
        try:
            data = paths.read_bytes(transcript)
        except OSError as error:
            yield Rejected(id=transcript.name, audio="", reason=f"transcript cannot be opened: {error.strerror}")
            continue
        lines = [data] if b"\0" in data else data.splitlines()  # UTF-16 is rejected as a whole
        for number, line in enumerate(lines, 1):
            try:
                name, text = (*decode_text(line).split(maxsplit=1), "", "")[:2]
            except UserError as error:
                yield Rejected(id=f"{transcript.name}:{number}", audio="", reason=str(error))
                continue
            if name:
                path = recordings.get((transcript.parent, name), transcript.parent / f"{name}.flac")
                yield Utterance(f"ls-{name}", str(path), text, f"ls-{name.split('-')[0]}", language="en", split=split)


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
        try:
            columns = decode_text(header).split("\t")
        except UserError as error:
            raise UserError(f"{table}: {error}") from error
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
    for path in paths.walk(source).files:
        if found := FSDD_NAME.fullmatch(path.name):
            digit, speaker, number = found.groups()
            known = "test_known" if int(number) in FSDD_TEST_NUMBERS else "train"
            split = "test_unseen" if speaker == FSDD_UNSEEN_SPEAKER else known
            yield Utterance(f"fsdd-{path.stem}", str(path), DIGITS[int(digit)], f"fsdd-{speaker}", language="en", split=split)


def import_jsonl(source: Path) -> Iterator[Record]:
    """A manifest, or the folder that holds `manifest.jsonl`; also with NeMo's and lhotse's keys (`audio_filepath`)."""
    names = ("manifest.jsonl", "manifest.jsonl.gz")
    inside = [path for name in names if (path := source / name).exists()] or [source / names[0]]
    path = inside[0] if source.is_dir() else source
    utterances, rejected = scan_manifest(path)
    yield from rejected
    for utterance in utterances:
        yield replace(utterance, audio=os.path.abspath(path.parent / utterance.audio)) if utterance.audio else utterance


Importer = Callable[[Path], Iterable[Record]]
IMPORTERS: dict[str, Importer] = {
    "folder": import_folder,
    "librispeech": import_librispeech,
    "commonvoice": import_commonvoice,
    "fsdd": import_fsdd,
    "jsonl": import_jsonl,
}


def import_corpus(
    kind: str,
    source: Path | str,
    out: Path | str,
    text_style: str | None = None,
    limits: Limits | None = None,
    allow_outside: bool = False,
    splits: Collection[str] = (),
    strip_tags: bool = False,
) -> Summary:
    """Write `manifest.jsonl` and `rejected.jsonl` in the folder `out`. Every sound file below `source` is in one of them.

    `text_style` names a step of `mtbi.corpus.text_style`. `allow_outside` accepts recordings outside the source folder, which
    manifests from elsewhere may name. `splits` keeps utterances of these splits only; `strip_tags` removes tags like [noise].
    Raises UserError for an unknown kind, a missing source, a split that is not there, or when nothing can be used.
    """
    source, out, write = Path(os.path.abspath(source)), Path(out), style(text_style or "none")
    importer: Importer = plugins.find(plugins.IMPORTERS, kind, IMPORTERS, "corpus kind")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    paths.walk.cache_clear()
    records = list(importer(source))
    walk = paths.walk(source) if source.is_dir() else paths.Walk()
    if not records:
        expected = " ".join((importer.__doc__ or "").split())
        there = f" There are {len(walk.files)} files: {counted(endings(walk.files))}." if walk.files else ""
        hint = f"{there}{other_layout(walk, kind)}"
        raise UserError(f"{source}: nothing found. The kind {kind!r} expects: {expected}{hint}")
    base = source.parent if source.is_file() else source
    chosen, rejected = sort_out(records, base, allow_outside, splits)
    tagged = [utterance for utterance in chosen if TAG.search(utterance.text)]
    if strip_tags:
        chosen = [replace(utterance, text=without_tags(utterance.text)) for utterance in chosen]
    good, unfit = check((restyle(utterance, write) for utterance in chosen), base, limits)
    good, repeated = unique(good)
    rejected += unfit + repeated
    rejected += unlisted(walk, base, [*(utterance.audio for utterance in good), *(record["audio"] for record in rejected)])
    write_lines(out / "rejected.jsonl", rejected)
    if not good:
        reasons = count_reasons(rejected)
        raise UserError(f"{source}: none of the {len(rejected)} records can be used ({reasons}); see {out / 'rejected.jsonl'}")
    write_manifest(out / "manifest.jsonl", (relocate(utterance, base, out) for utterance in good))
    ids = {utterance.id for utterance in good}
    return summarise(good, rejected, walk, base, 0 if strip_tags else sum(utterance.id in ids for utterance in tagged))


def other_layout(walk: paths.Walk, kind: str) -> str:
    """What is known about a layout that no importer reads; empty for an unknown one."""
    names = {path.name for path in walk.files}
    marks = {
        "manifest.jsonl": "a manifest",
        "transcripts.txt": "Multilingual LibriSpeech",
        "wav.scp": "Kaldi",
        "metadata.csv": "LJ Speech",
        "validated.tsv": "Common Voice",
        "train.tsv": "Common Voice",
    }
    known = next((layout for name, layout in marks.items() if name in names), "")
    known = known or ("LibriTTS" if any(name.endswith(".normalized.txt") for name in names) else "")
    known = known or ("LibriSpeech" if any(name.endswith(".trans.txt") for name in names) else "")
    if not known or known.replace(" ", "").lower() == kind:
        return ""
    own = {"a manifest": "jsonl", "Common Voice": "commonvoice", "LibriSpeech": "librispeech"}
    advice = f"use the kind {own[known]!r}" if known in own else "write a manifest and use the kind 'jsonl'"
    return f" This looks like {known}: {advice}."


def sort_out(
    records: Iterable[Record], base: Path, allow_outside: bool = False, splits: Collection[str] = ()
) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances that may be checked, and the others, without a look into their recordings.

    Raises UserError where `splits` are given and none has an utterance.
    """
    chosen: list[Utterance] = []
    rejected: list[Rejected] = []
    there: set[str] = set()
    for record in records:
        if not isinstance(record, Utterance):
            rejected.append(record)
            continue
        there.add(record.split)
        if record.audio:
            record = replace(record, audio=str(paths.locate(record.audio)))
        if record.audio and not (allow_outside or Path(os.path.abspath(record.audio)).is_relative_to(base)):
            reason = f"outside: the audio does not lie in {base}; allow it with --allow-outside if you trust the manifest"
        elif splits and record.split not in splits:
            reason = f"other split: {record.split or 'none'} was not chosen with --split"
        else:
            chosen.append(record)
            continue
        rejected.append(Rejected(id=record.id, audio=record.audio, reason=reason))
    if splits and not there & set(splits):
        known = ", ".join(sorted(there)) or "none"
        raise UserError(f"--split {' '.join(splits)}: no record has it; there are: {known}")
    return chosen, rejected


def restyle(utterance: Utterance, write: TextStyle) -> Utterance:
    """The transcript in another spelling, in NFC, with single spaces; word times are kept if the words or their number are."""
    text = text_units.join(text_units.units(write(utterance.text)))
    words, units = utterance.words, text_units.units(text)
    if words is not None and text_units.join([text_units.nfc(word) for word, _, _ in words]) != text:
        same = len(words) == len(units)
        words = [(new, start, end) for new, (_, start, end) in zip(units, words, strict=True)] if same else None
    return replace(utterance, text=text, words=words)
