"""Importers: from a layout that speech corpora come in to one checked manifest.

An importer is a function from a folder or file to records. A record is an utterance with an absolute audio path, or a
`Rejected` with the reason why there is none. Shipped importers are rows of `plugins.SHIPPED`. A package adds its own by an
entry point of the group `mtbi.importers` (docs/plugins.md).
"""

from __future__ import annotations

import csv
import inspect
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mtbi import plugins, text_units
from mtbi.audio.sound_files import below, is_sound, locate
from mtbi.corpus import paths
from mtbi.corpus.check import RecordingLimits, check
from mtbi.corpus.manifest import (
    ManifestSlice,
    Rejected,
    Utterance,
    count_reasons,
    decode_text,
    relocate,
    scan_manifest,
    write_lines,
    write_manifest,
)
from mtbi.corpus.parts import check_part
from mtbi.corpus.summary import Summary, counted, endings, summarise, unique, unlisted
from mtbi.corpus.text_style import TAG, TextStyle, style
from mtbi.corpus.text_style import strip_tags as without_tags
from mtbi.errors import UserError
from mtbi.object_store import is_remote

Record = Utterance | Rejected
#: Names of text files that are no transcripts.
ABOUT_A_CORPUS = {"readme", "license", "licence", "copying", "changelog", "changes", "notice", "authors", "about", "speakers"}


def import_folder(source: Path) -> Iterator[Record]:
    """Audio files at any depth, each with its transcript in a `.txt` file of the same name.

    The first folder below `source` is the speaker.
    """
    files = paths.walk(source).files
    texts = {path for path in files if path.suffix.lower() == ".txt"}
    by_name = {_same_name(path): path for path in sorted(texts)}
    used: set[Path] = set()
    for path in filter(is_sound, files):
        below_source, beside = path.relative_to(source), path.with_suffix(".txt")
        name = str(below_source.with_suffix(""))
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
            yield Utterance(name, str(path), text, speaker=below_source.parts[0] if len(below_source.parts) > 1 else "")
    for path in sorted(texts - used):
        if path.stem.lower() not in ABOUT_A_CORPUS:
            name = str(path.relative_to(source))
            yield Rejected(id=name, audio="", reason=f"no recording: {path.name} has none of its name beside it")


def _same_name(path: Path) -> tuple[Path, str]:
    """A key that files of one folder share if their names without endings are the same text. macOS stores names in NFD."""
    return path.parent, unicodedata.normalize("NFC", path.stem)


def import_librispeech(source: Path) -> Iterator[Record]:
    """`SPEAKER-CHAPTER.trans.txt` files at any depth with lines `ID TEXT`, and `ID.flac` (or another ending) beside them."""
    files = paths.walk(source).files
    recordings = {(path.parent, path.stem): path for path in reversed(files) if is_sound(path)}
    for transcript in (path for path in files if path.name.endswith(".trans.txt")):
        split = next((part for part in transcript.parts[::-1] if part.startswith(("train-", "dev-", "test-"))), "")
        for line in keyed_lines(transcript):
            if not isinstance(line, tuple):
                yield line
                continue
            name, text = line
            path = recordings.get((transcript.parent, name), transcript.parent / f"{name}.flac")
            yield Utterance(f"ls-{name}", str(path), text, f"ls-{name.split('-')[0]}", language="en", split=split)


def keyed_lines(path: Path) -> Iterator[tuple[str, str] | Rejected]:
    """The id and the text of each line `ID TEXT` of a file. A line or a file that cannot be read gives a `Rejected`."""
    try:
        data = paths.read_bytes(path)
    except OSError as error:
        yield Rejected(id=path.name, audio="", reason=f"transcript cannot be opened: {error.strerror}")
        return
    lines = [data] if b"\0" in data else data.splitlines()  # UTF-16 is rejected as a whole
    for number, line in enumerate(lines, 1):
        try:
            name, text = (*decode_text(line).split(maxsplit=1), "", "")[:2]
        except UserError as error:
            yield Rejected(id=f"{path.name}:{number}", audio="", reason=str(error))
            continue
        if name:
            yield name, text


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
            rejected = Rejected(id=f"{table.name}:{number}", audio="")
            try:
                row = next(csv.DictReader([decode_text(line)], columns, delimiter="\t", quoting=csv.QUOTE_NONE), None)
            except UserError as error:
                yield rejected | {"reason": str(error)}
                continue
            if row and not (row["path"] and row["client_id"]):
                yield rejected | {"reason": f"bad record: no path or client_id in line {number} of {table.name}"}
            elif row:
                path = folder / "clips" / Path(row["path"]).name
                name, speaker = f"cv-{path.stem}", f"cv-{row['client_id'][:16]}"
                yield Utterance(
                    name, str(path), row["sentence"] or "", speaker, language=row.get("locale") or "", split=table.stem
                )


def import_jsonl(source: Path) -> Iterator[Record]:
    """A manifest, or the folder that holds `manifest.jsonl`; also with NeMo's and lhotse's keys (`audio_filepath`)."""
    names = ("manifest.jsonl", "manifest.jsonl.gz")
    inside = [path for name in names if (path := source / name).exists()] or [source / names[0]]
    path = inside[0] if source.is_dir() else source
    utterances, rejected = scan_manifest(path)
    yield from rejected
    for utterance in utterances:
        yield replace(utterance, audio=below(path.parent, utterance.audio)) if utterance.audio else utterance


Importer = Callable[..., Iterable[Record]]  # of a folder or file, and of columns where it has any
IMPORTERS = plugins.SHIPPED[plugins.IMPORTERS]  #: the kinds that are shipped


def import_corpus(
    kind: str,
    source: Path | str,
    out: Path | str,
    text_style: str | None = None,
    limits: RecordingLimits | None = None,
    allow_outside: bool = False,
    splits: Collection[str] = (),
    strip_tags: bool = False,
    columns: Mapping[str, str] | None = None,
    part: ManifestSlice | None = None,
) -> Summary:
    """Write `manifest.jsonl` and `rejected.jsonl` in the folder `out`. Every sound file below `source` is in one of them.

    `kind` is the name of a shipped importer or of an installed one. `text_style` names a style of `mtbi.corpus.text_style`.
    `allow_outside` accepts recordings outside the source folder, which manifests from elsewhere may name. `splits` keeps only
    utterances of these splits. `strip_tags` removes tags like [noise]. `columns` are further arguments of the importer, such as
    the `text_column` of a table. A `part` checks its share of the recordings. The process that finishes the last part writes
    both files, the same as without parts; until then the summary is the part's. Raises UserError for an unknown kind, a missing
    source, a split that no record has, where no record can be used, and where a part was made from other records.
    """
    source, out, write = Path(os.path.abspath(source)), Path(out), style(text_style or "none")
    importer: Importer = plugins.find(plugins.IMPORTERS, kind, IMPORTERS, "corpus kind")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    paths.walk.cache_clear()
    records = list(importer(source, **chosen_columns(importer, kind, columns or {})))
    walk = paths.walk(source) if source.is_dir() else paths.Walk()
    if not records:
        expected = " ".join((importer.__doc__ or "").split())
        files = f" There are {len(walk.files)} files: {counted(endings(walk.files))}." if walk.files else ""
        raise UserError(f"{source}: nothing found. The kind {kind!r} expects: {expected}{files}{other_layout(walk, kind)}")
    base = source.parent if source.is_file() else source
    chosen, rejected = sort_out(records, base, allow_outside, splits)
    tagged = [utterance for utterance in chosen if TAG.search(utterance.text)]
    if strip_tags:
        chosen = [replace(utterance, text=without_tags(utterance.text)) for utterance in chosen]
    restyled = [restyle(utterance, write) for utterance in chosen]
    if part:
        own, every = check_part(restyled, base, Path(os.path.abspath(out)), part, lambda some: check(some, base, limits))
        if every is None:
            return summarise(*own, paths.Walk(), base)
    good, unfit = every if part and every else check(restyled, base, limits)
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


def chosen_columns(importer: Importer, kind: str, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns that the user chose. Raises UserError where the importer has no such choice."""
    given = {name: column for name, column in columns.items() if column}
    if unknown := given.keys() - inspect.signature(importer).parameters.keys():
        raise UserError(f"--{min(unknown).replace('_', '-')}: the kind {kind!r} has no columns to choose from")
    return given


def other_layout(walk: paths.Walk, kind: str) -> str:
    """Advice where the files look like another layout, also one that no importer reads. Empty where no layout is recognised."""
    names = {path.name for path in walk.files}
    marks = {
        "manifest.jsonl": ("a manifest", "jsonl"),
        "transcripts.txt": ("Multilingual LibriSpeech", "mls"),
        "wav.scp": ("Kaldi", "kaldi"),
        "metadata.csv": ("LJ Speech", ""),
        "validated.tsv": ("Common Voice", "commonvoice"),
        "train.tsv": ("Common Voice", "commonvoice"),
        "GigaSpeech.json": ("GigaSpeech", "gigaspeech"),
        ".normalized.txt": ("LibriTTS", "libritts"),
        ".trans.txt": ("LibriSpeech", "librispeech"),
        ".stm": ("STM transcripts", "stm"),
        ".parquet": ("Parquet", "parquet"),
        "cuts.000000.jsonl.gz": ("lhotse Shar", "shar"),
        ".tar": ("tar archives", "tar"),
    }
    known, other_kind = next(
        (
            layout
            for mark, layout in marks.items()
            if mark in names or (mark[0] == "." and any(name.endswith(mark) for name in names))
        ),
        ("", ""),
    )
    if not known or other_kind == kind:
        return ""
    advice = f"use the kind {other_kind!r}" if other_kind in IMPORTERS else "write a manifest and use the kind 'jsonl'"
    return f" This looks like {known}: {advice}."


def sort_out(
    records: Iterable[Record], base: Path, allow_outside: bool = False, splits: Collection[str] = ()
) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances that may be checked, and the rejected ones. No recording is opened.

    Raises UserError where `splits` are given and none has an utterance.
    """
    chosen: list[Utterance] = []
    rejected: list[Rejected] = []
    found_splits: set[str] = set()
    for record in records:
        if not isinstance(record, Utterance):
            rejected.append(record)
            continue
        found_splits.add(record.split)
        if record.audio and not is_remote(record.audio):
            record = replace(record, audio=str(locate(record.audio)))
        inside = not is_remote(record.audio) and Path(os.path.abspath(record.audio)).is_relative_to(base)
        if record.audio and not (allow_outside or inside):
            reason = f"outside: the audio does not lie in {base}; allow it with --allow-outside if you trust the manifest"
        elif splits and record.split not in splits:
            reason = f"other split: {record.split or 'none'} was not chosen with --split"
        else:
            chosen.append(record)
            continue
        rejected.append(Rejected(id=record.id, audio=record.audio, reason=reason))
    if splits and not found_splits & set(splits):
        known = ", ".join(sorted(found_splits)) or "none"
        raise UserError(f"--split {' '.join(splits)}: no record has it; there are: {known}")
    return chosen, rejected


def restyle(utterance: Utterance, write: TextStyle) -> Utterance:
    """The utterance with its transcript in another spelling, in NFC, with single spaces.

    Word times are kept where the words, or at least their number, stay the same.
    """
    text = text_units.join(text_units.units(write(utterance.text)))
    words, units = utterance.words, text_units.units(text)
    if words is not None and text_units.join([text_units.nfc(word) for word, _, _ in words]) != text:
        same = len(words) == len(units)
        words = [(new, start, end) for new, (_, start, end) in zip(units, words, strict=True)] if same else None
    return replace(utterance, text=text, words=words)
