"""Every file of a corpus, through links."""

from __future__ import annotations

from pathlib import Path

from mtbi.corpus import paths


def test_linked_folders_are_entered_once_and_loops_end(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (corpus / "b").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    for file in (corpus / "b/x.wav", elsewhere / "y.wav", elsewhere / "deep/z.wav"):
        file.write_bytes(b"")
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "a").symlink_to("b")
    (corpus / "b/loop").symlink_to(corpus)
    (elsewhere / "itself").symlink_to("itself")
    (corpus / "gone.wav").symlink_to("nowhere")
    found = paths.walk(corpus)
    assert [str(path.relative_to(corpus)) for path in found.files] == [
        "b/x.wav",
        "gone.wav",
        "linked/deep/z.wav",
        "linked/itself",
        "linked/y.wav",
    ]
    assert sorted((str(path.relative_to(corpus)), why) for path, why in found.unread) == [
        ("a", "linked twice: the folder is read as b"),
        ("b/loop", "linked twice: the folder is read as ."),
    ]
