"""The importer of lhotse's Shar folders. Nothing is unpacked."""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtbi.audio.sound_files import is_sound
from mtbi.corpus import manifest, paths
from mtbi.corpus.archives import members_of
from mtbi.corpus.importers import Record
from mtbi.corpus.manifest import Rejected, decode_text
from mtbi.errors import UserError


def import_shar(source: Path) -> Iterator[Record]:
    """lhotse Shar: `cuts.000000.jsonl.gz` (or `.jsonl`) with `recording.000000.tar` beside it, at any depth.

    Each cut must be a MonoCut with one supervision. The manifest gets the position of each recording in its archive. The layout
    is that of lhotse's `SharWriter` (https://github.com/lhotse-speech/lhotse): a recording has the id of its cut, and begins
    and ends with it.
    """
    for path in paths.walk(source).files:
        stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
        if stem == path.name or stem.split(".")[0] != "cuts":
            continue
        archive = path.with_name(f"recording{stem.removeprefix('cuts')}.tar")
        try:
            addresses = {member.key: member.address for member in members_of(archive) if is_sound(Path(member.name))}
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            yield Rejected(id=path.name, audio="", reason=f"no recording: {archive.name} is not beside {path.name}")
            continue
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            yield Rejected(id=path.name, audio=str(archive), reason=f"not readable as Shar: {error}")
            continue
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield read_cut(line, f"{path.name}:{number}", addresses)


def read_cut(line: bytes, name: str, addresses: dict[str, str]) -> Record:
    """The utterance of a cut, or why there is none. `addresses` are the audio paths of recordings by the ids of their cuts."""
    identity = name
    try:
        cut: Any = json.loads(decode_text(line))
        identity = str(cut["id"])
        address = addresses.get(identity)
        if address is None:
            raise UserError("no recording: the archive has none with the id of the cut")
        (stored,) = cut["recording"]["sources"]
        cut["recording"]["sources"] = [stored | {"type": "file", "source": address}]
        return manifest.parse(cut)
    except UserError as error:
        return Rejected(id=identity, audio=addresses.get(identity, ""), reason=str(error))
    except (ValueError, KeyError, TypeError) as error:
        return Rejected(id=identity, audio="", reason=f"bad record: no cut of lhotse with one recording ({error!r})")
