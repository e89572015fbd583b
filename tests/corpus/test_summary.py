"""Nothing is lost or taken twice without a word: each file below a source is kept, rejected with a reason, or no sound."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imported import rejected_kinds

from mtbi.audio.sound_files import is_sound
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest
from mtbi.errors import UserError

BUFFER = io.BytesIO()
soundfile.write(BUFFER, np.random.default_rng(0).uniform(-0.3, 0.3, 2000), 16_000, format="WAV")
NAMES = st.sampled_from(["a", "b", "é", "e\u0301", "1-2-0001", "0_anna_1"])
ENDINGS = st.sampled_from([".wav", ".WAV", ".flac", ".m4a", ".txt", ".TXT", ".md", ".oga", "", ".trans.txt"])
CONTENTS = st.sampled_from([BUFFER.getvalue(), b"one two\n", b"", b"1-2-0001 one\n", "naïve".encode("latin1"), b"[noise]"])
PLACES = [".", "s1", "s1/deep", "s2", "é"]
FOLDERS = st.sampled_from(PLACES)
FILES = st.lists(st.tuples(FOLDERS, NAMES, ENDINGS, CONTENTS), min_size=1, max_size=8)
LINKS = st.lists(st.tuples(FOLDERS, st.sampled_from(["x", "y.wav"]), st.sampled_from([*PLACES, "gone"])), max_size=3)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, LINKS, st.sampled_from(["folder", "librispeech", "fsdd"]))
def test_each_file_is_accounted_for(
    files: list[tuple[str, str, str, bytes]], links: list[tuple[str, str, str]], kind: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in"), Path(folder, "out")
        for place, name, ending, content in files:
            (source / place).mkdir(parents=True, exist_ok=True)
            (source / place / f"{name}{ending}").write_bytes(content)
        for place, name, target in links:
            (source / place).mkdir(exist_ok=True, parents=True)
            if not os.path.lexists(source / place / name):
                (source / place / name).symlink_to(source / target)
        try:
            summary = import_corpus(kind, source, out)
        except UserError as error:  # nothing was found, or nothing can be used
            if "nothing found" in str(error):
                return
            summary = None
        rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
        kept = read_manifest(out / "manifest.jsonl") if summary else []
        assert all(set(record) == {"id", "audio", "reason"} and record["reason"] for record in rejected)
        named = {os.path.realpath(out / utterance.audio) for utterance in kept}
        named |= {os.path.realpath(source / record["audio"]) for record in rejected if record["audio"]}
        everything = [Path(place, name) for place, _, names in os.walk(source, followlinks=False) for name in names]
        for path in everything:
            if is_sound(path):
                assert os.path.realpath(path) in named
        assert len({utterance.id for utterance in kept}) == len(kept)
        if summary:
            assert summary.kept == len(kept)
            assert summary.rejected == len(rejected) == sum(summary.reasons.values())
            assert summary.files == summary.files_kept + summary.files_rejected + sum(summary.no_sound.values())
            assert summary.files >= len([path for path in everything if not path.is_symlink()])


def recordings(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(BUFFER.getvalue())


def test_linked_folders_other_formats_and_equal_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    source, out = tmp_path / "in", tmp_path / "out"
    recordings(tmp_path, "in/s1/a.wav", "in/s1/a.flac", "in/s1/b.wav", "real/s2/x.wav", "in/s1/n.oga")
    for name in ("s1/a", "s1/m", "s1/lost", "s1/n"):
        (source / f"{name}.txt").write_text("hi")
    (source / "README.txt").write_text("about")
    (source / "s1/m.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    (tmp_path / "real/s2/x.TXT").write_text("hi")
    (source / "s2").symlink_to(tmp_path / "real/s2")
    (source / "s3").symlink_to("s1")
    summary = import_corpus("folder", source, out)
    assert {(u.id, u.speaker) for u in read_manifest(out / "manifest.jsonl")} == {
        ("s1/a", "s1"),
        ("s1/n", "s1"),
        ("s2/x", "s2"),
    }
    assert rejected_kinds(out) == {
        "s1/a": "id used before",
        "s1/b": "no transcript",
        "s1/m": "needs ffmpeg",
        "s1/lost.txt": "no recording",
        "s3": "linked twice",
    }
    text = str(summary)
    assert "kept 3 utterances" in text
    assert "rejected 5" in text
    assert "12 files: 3 kept, 3 rejected, 6 no sound (6 .txt)" in text


def test_files_that_no_table_names_and_clips_in_two_tables(tmp_path: Path) -> None:
    recordings(tmp_path / "clips", "one.mp3", "two.mp3", "spare.mp3")
    header = "client_id\tpath\tsentence\n"
    (tmp_path / "train.tsv").write_text(header + "x\tone.mp3\tYes.\nx\ttwo.mp3\tNo.\n")
    (tmp_path / "dev.tsv").write_text(header + "x\tone.mp3\tYes.\n")
    summary = import_corpus("commonvoice", tmp_path, tmp_path / "out")
    assert summary.kept == 2
    assert rejected_kinds(tmp_path / "out") == {"cv-one": "id used before", "clips/spare": "not listed"}
    summary = import_corpus("commonvoice", tmp_path, tmp_path / "dev", splits=["dev"])
    assert (summary.kept, summary.splits) == (1, {"dev": 1})
    assert rejected_kinds(tmp_path / "dev") == {"cv-one": "other split", "cv-two": "other split", "clips/spare": "not listed"}
    with pytest.raises(UserError, match="--split test: no record has it; there are: dev, train"):
        import_corpus("commonvoice", tmp_path, tmp_path / "test", splits=["test"])


def test_librispeech_with_copies_tabs_and_wav(tmp_path: Path) -> None:
    for root in ("dev-clean", "copy"):
        recordings(tmp_path, f"{root}/1/2/1-2-0000.wav", f"{root}/1/2/1-2-0001.flac")
        (tmp_path / root / "1/2/1-2.trans.txt").write_text("1-2-0000\tYES\n1-2-0001 NO\n")
    summary = import_corpus("librispeech", tmp_path, tmp_path / "out")
    assert (summary.kept, summary.reasons) == (2, {"id used before": 2})


def test_names_in_two_unicode_forms_and_names_that_are_no_text(tmp_path: Path) -> None:
    recordings(tmp_path, "in/gro\u0308ße.wav")
    (tmp_path / "in/gr\u00f6ße.txt").write_text("hi")
    bad = os.fsencode(tmp_path / "in") + b"/caf\xe9"
    for ending, content in ((b".wav", BUFFER.getvalue()), (b".txt", b"hi")):
        Path(os.fsdecode(bad + ending)).write_bytes(content)
    summary = import_corpus("folder", tmp_path / "in", tmp_path / "out")
    assert (summary.kept, summary.reasons) == (1, {"bad character": 1})
    lines = [{"audio": "in/gr\u00f6ße.wav", "text": "hi"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_corpus("jsonl", tmp_path / "m.jsonl", tmp_path / "again")
    assert (tmp_path / "again" / read_manifest(tmp_path / "again/manifest.jsonl")[0].audio).exists()


def test_tags_are_counted_or_stripped(tmp_path: Path) -> None:
    recordings(tmp_path, "in/a.wav", "in/b.wav")
    (tmp_path / "in/a.txt").write_text("[NOISE] HELLO <unk> THERE")
    (tmp_path / "in/b.txt").write_text("[NOISE]")
    summary = import_corpus("folder", tmp_path / "in", tmp_path / "out", "sentence")
    assert summary.tagged == 1
    assert "1 transcripts hold tags such as [noise]" in str(summary)
    assert [u.text for u in read_manifest(tmp_path / "out/manifest.jsonl")] == ["[NOISE] Hello <unk> there."]
    summary = import_corpus("folder", tmp_path / "in", tmp_path / "out", "sentence", strip_tags=True)
    assert (summary.kept, summary.reasons, summary.tagged) == (1, {"no transcript": 1}, 0)
    assert [u.text for u in read_manifest(tmp_path / "out/manifest.jsonl")] == ["Hello there."]


def test_utterances_that_share_a_recording_are_counted(tmp_path: Path) -> None:
    recordings(tmp_path, "a.wav", "spare.wav")
    lines: list[dict] = [{"id": str(number), "audio": "a.wav", "text": "hi"} for number in range(2)]
    lines.append({"id": "2", "audio": "a.wav", "start_s": 0.02, "text": "hi"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = import_corpus("jsonl", tmp_path, tmp_path / "out")
    assert (summary.kept, summary.shared, summary.reasons) == (3, 1, {"not listed": 1})


@pytest.mark.parametrize(
    ("name", "layout"),
    [("transcripts.txt", "Multilingual LibriSpeech"), ("wav.scp", "Kaldi"), ("a.normalized.txt", "LibriTTS")],
)
def test_other_layouts_are_named(name: str, layout: str, tmp_path: Path) -> None:
    recordings(tmp_path, "a.wav")
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=rf"nothing found.*There are 2 files: .*1 \.wav.*looks like {layout}"):
        import_corpus("librispeech", tmp_path, tmp_path / "out")


def test_every_importer_enters_linked_folders(tmp_path: Path) -> None:
    recordings(tmp_path, "real/7_anna_1.wav")
    (tmp_path / "real/1-2.trans.txt").write_text("7_anna_1 SEVEN")
    (tmp_path / "real/7_anna_1.txt").write_text("seven")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "real")
    for kind in ("folder", "librispeech", "fsdd"):
        assert import_corpus(kind, tmp_path / "in", tmp_path / kind).kept == 1
