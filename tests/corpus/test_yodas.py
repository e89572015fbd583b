"""YODAS's folders, in a tiny folder of the layout."""

from __future__ import annotations

import tarfile
from pathlib import Path

from imported import rejected_kinds, write_noise

from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest


def test_languages_are_folders(tmp_path: Path) -> None:
    source = tmp_path / "data"
    for folder, name in (("en000", "vid1-00000-00000000-00000100"), ("da001", "vid2-00001-00000000-00000100")):
        write_noise(source / folder / "audio/00000000" / f"{name}.wav", 1.0)
        (source / folder / "text").mkdir()
        (source / folder / "text/00000000.txt").write_text(f"{name} well then\nvid9-0 lost\n")
    (source / "en000/duration").mkdir()
    (source / "en000/duration/00000000.txt").write_text("vid1-00000-00000000-00000100 9.0\n")
    write_noise(tmp_path / "vid3-00000-0-100.wav", 1.0)
    with tarfile.open(source / "da001/audio/00000001.tar", "w") as archive:
        archive.add(tmp_path / "vid3-00000-0-100.wav", "audio/00000001/vid3-00000-0-100.wav")
    (source / "da001/text/00000001.txt").write_text("vid3-00000-0-100 packed\n")
    import_corpus("yodas", source, tmp_path / "out")
    one, packed = read_manifest(tmp_path / "out/manifest.jsonl")
    assert (packed.text, packed.split) == ("packed", "da001")
    assert (one.id, one.text, one.language, one.split) == ("vid2-00001-00000000-00000100", "well then", "da", "da001")
    assert rejected_kinds(tmp_path / "out") == {"vid1-00000-00000000-00000100": "duration differs", "vid9-0": "no recording"}
