"""The importer of tar files: WebDataset, NeMo's tarred data sets, and plain archives. Nothing is unpacked."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtbi.audio.sound_files import is_sound
from mtbi.corpus import manifest, paths
from mtbi.corpus.importers import Record
from mtbi.corpus.manifest import Rejected, Utterance, decode_text
from mtbi.errors import UserError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LARGEST_TEXT_BYTES = 2**20  # of a transcript or of a JSON object inside an archive
SUB = re.compile(r"-sub\d+(?=\.[^.]*$)")  # NeMo: a further utterance of the same member
Manifest = dict[str, list[dict[str, Any]]]  # member → the lines of a manifest about it


@dataclass(frozen=True)
class Member:
    """A file inside an archive."""

    name: str
    archive: Path
    first: int  #: position of its first byte in the archive
    size: int  #: bytes

    @property
    def address(self) -> str:
        """The audio path of a manifest (`mtbi.audio.members`)."""
        return f"{self.archive}:{self.first}:{self.size}"

    @property
    def key(self) -> str:
        """The name without its last ending, which a recording and its transcript share."""
        return str(Path(self.name).with_suffix(""))

    def text(self) -> str:
        """The text of a small file. Raises UserError where it is not UTF-8 or too large, and OSError."""
        if self.size > LARGEST_TEXT_BYTES:
            raise UserError(f"too large: {self.name} has {self.size} bytes, more than a transcript has")
        with self.archive.open("rb") as file:
            file.seek(self.first)
            return decode_text(file.read(self.size))


def import_tar(source: Path) -> Iterator[Record]:
    """`.tar` files at any depth with recordings, and each transcript in a `.txt` or `.json` member of the same name: WebDataset
    or a plain archive. Or NeMo's tarred data: `audio_0.tar` with `sharded_manifests/manifest_0.json` or
    `tarred_audio_manifest.json`.

    The manifest gets the position of each recording in its archive, so nothing is unpacked. A `.json` member has the keys of a
    manifest, and its text is taken where there is no `.txt`. The layouts are those of https://github.com/webdataset/webdataset
    and of NeMo's scripts/speech_recognition/convert_to_tarred_audio_dataset.py.
    """
    files = [source] if source.is_file() else paths.walk(source).files
    lines, rejected = read_manifests(files)
    yield from rejected
    for path in files:
        if path.name.lower().endswith(COMPRESSED):
            reason = (
                "compressed: a compressed archive cannot be read from the middle; decompress it with gunzip, bunzip2 or unxz"
            )
            yield Rejected(id=path.name, audio=str(path), reason=reason)
        elif path.suffix.lower() == ".tar":
            below = path.name if path == source else str(path.relative_to(source))
            try:
                yield from read_archive(list(members_of(path)), below.removesuffix(path.suffix), lines)
            except (tarfile.TarError, OSError, EOFError) as error:
                yield Rejected(id=below, audio=str(path), reason=f"not readable as tar: {error}")
    for name, entries in lines.items():
        for entry in entries:
            yield Rejected(id=str(entry.get("id", name)), audio="", reason=f"no recording: no archive has the member {name}")


def members_of(path: Path) -> Iterator[Member]:
    """The files inside an archive. Only their headers are read. Raises tarfile's errors for a damaged archive, and OSError."""
    paths.refuse_pipe(path)
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if info.isreg() and not info.issparse():
                yield Member(info.name, path, info.offset_data, info.size)


def read_manifests(files: list[Path]) -> tuple[Manifest, list[Rejected]]:
    """The lines of NeMo's manifests by the member that each is about. A manifest of all shards comes before those of each."""
    tables = [path for path in files if re.fullmatch(r"manifest_\d+\.json", path.name)]
    tables = [path for path in files if path.name == "tarred_audio_manifest.json"] or tables
    found: Manifest = {}
    rejected = []
    for path in tables:
        try:
            lines = paths.read_bytes(path).splitlines()
        except OSError as error:
            rejected.append(Rejected(id=path.name, audio="", reason=f"manifest cannot be opened: {error.strerror}"))
            continue
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(decode_text(line)) if line.strip() else None
                if entry is not None:
                    found.setdefault(SUB.sub("", entry["audio_filepath"]), []).append(entry)
            except (ValueError, KeyError, TypeError, UserError) as error:
                reason = f"bad record: line {number} of {path.name} is not a line of NeMo's manifests ({error!r})"
                rejected.append(Rejected(id=f"{path.name}:{number}", audio="", reason=reason))
    return found, rejected


def read_archive(members: list[Member], name: str, lines: Manifest) -> Iterator[Record]:
    """The records of one archive. `name` is its path below the source; lines of manifests that are used are taken out."""
    texts = {member.key: member for member in members if member.name.lower().endswith(".txt")}
    objects = {member.key: member for member in members if member.name.lower().endswith(".json")}
    for member in members:
        if not is_sound(Path(member.name)):
            continue
        if entries := lines.pop(member.name, None):
            for entry in entries:
                default = f"{name}/{Path(entry['audio_filepath']).with_suffix('')}"
                yield read_entry(entry, member, default)
            continue
        identity = f"{name}/{member.key}"
        try:
            entry = json.loads(objects[member.key].text()) if member.key in objects else {}
            if member.key in texts:
                entry["text"] = " ".join(texts[member.key].text().split())
        except (ValueError, TypeError, OSError, UserError) as error:
            yield Rejected(id=identity, audio=member.address, reason=f"transcript cannot be read: {error}")
            continue
        if not entry:
            yield Rejected(id=identity, audio=member.address, reason=f"no transcript: {member.key}.txt is not in the archive")
        else:
            yield read_entry(entry, member, identity)


def read_entry(entry: Mapping[str, Any], member: Member, identity: str) -> Utterance | Rejected:
    """The utterance of a manifest's keys about a member. `identity` is its id where the keys have none."""
    others = {key: value for key, value in entry.items() if key not in ("audio_filepath", "audio", "shard_id")}
    try:
        return manifest.parse({"id": identity} | others | {"audio": member.address})
    except UserError as error:
        return Rejected(id=str(entry.get("id", identity)), audio=member.address, reason=str(error))
