"""Reading and writing manifests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtbi.corpus import manifest
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import ManifestSlice, Utterance
from mtbi.errors import UserError


def test_manifest_round_trip_keeps_every_field(tmp_path: Path) -> None:
    full = Utterance(
        "a",
        "a.wav",
        "née Ørsted",
        "sp",
        1.5,
        "da",
        16000,
        "train",
        [("née", 0.0, 0.5), ("Ørsted", 0.5, 1.5)],
        {"count": "two"},
        0.0,
    )
    full.extra = {"gender": "F", "segments": [{"start": 0}]}
    manifest.write_manifest(tmp_path / "m.jsonl", [full, Utterance("b", "b.wav", "")])
    assert manifest.read_manifest(tmp_path / "m.jsonl") == [full, Utterance("b", "b.wav", "")]
    assert "Ørsted" in (tmp_path / "m.jsonl").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_an_interrupted_write_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    manifest.write_manifest(path, [Utterance("old", "a.wav", "x")])

    def broken():
        yield Utterance("new", "a.wav", "x")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        manifest.write_manifest(path, broken())
    assert [u.id for u in manifest.read_manifest(path)] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_nemo_and_lhotse_keys(tmp_path: Path) -> None:
    line = {
        "audio_filepath": "wavs/x1.wav",
        "duration": 2,
        "text": "hi",
        "lang": "en",
        "sampling_rate": 16000,
        "speaker_id": 7,
        "pred": "ho",
    }
    (tmp_path / "m.jsonl").write_text("\ufeff" + json.dumps(line) + "\n\n", encoding="utf-8")
    assert manifest.read_manifest(tmp_path / "m.jsonl") == [
        Utterance("wavs/x1", "wavs/x1.wav", "hi", "7", 2, "en", 16000, extra={"pred": "ho"})
    ]
    lines = [line | {"offset": offset} for offset in (0, 2.5)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = [(one.id, one.start_s, one.duration_s) for one in manifest.read_manifest(tmp_path / "m.jsonl")]
    assert found == [("wavs/x1-0.000", 0.0, 2), ("wavs/x1-2.500", 2.5, 2)]
    assert manifest.parse({"audio": "a.tar:512:99"}).id == "a.tar:512:99"


BAD_LINES = {
    "not JSON": b"{oops",
    "not UTF-8": '{"id": "l", "audio": "l.wav", "text": "caf\u00e9"}'.encode("latin1"),
    "bad record: a manifest line": b"[1]",
    "bad record: no audio path": b'{"id": "n", "text": "x"}',
    "bad record: text is a list": b'{"id": "t", "audio": "t.wav", "text": ["x"]}',
    "bad record: duration_s is a str": b'{"id": "d", "audio": "t.wav", "text": "x", "duration": "3"}',
    "bad record: words must be": b'{"id": "w", "audio": "t.wav", "text": "x", "words": [["x", 1]]}',
    "id used before: line": b'{"id": "good", "audio": "g.wav", "text": "x"}',
    "path upwards": b'{"id": "u", "audio": "a/../../secret.wav", "text": "x"}',
    "offset given": b'{"id": "o", "audio": "o.wav", "text": "x", "offset": -3.5}',
}


def test_bad_lines_are_told_apart_and_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = b'{"id": "good", "audio": "g.wav", "text": "x"}'
    path.write_bytes(b"\n".join([good, *BAD_LINES.values(), b'{"id": "last", "audio": "a/../l.wav", "text": "x"}']))
    utterances, rejected = manifest.scan_manifest(path)
    assert [u.id for u in utterances] == ["good", "last"]
    for number, (record, reason) in enumerate(zip(rejected, BAD_LINES, strict=True), 2):
        assert record["reason"].startswith(reason)
        assert f"line {number} of m.jsonl" in record["reason"]
    assert "byte 0xe9" in rejected[1]["reason"]
    with pytest.raises(UserError, match=r"m\.jsonl: 10 bad line\(s\), the first is m\.jsonl:2: not JSON"):
        manifest.read_manifest(path)
    with pytest.raises(UserError, match="cannot be read"):
        manifest.read_manifest(tmp_path / "none.jsonl")


def test_relocated_audio_is_found_from_the_new_folder(tmp_path: Path) -> None:
    moved = manifest.relocate(Utterance("a", "deep/a.wav", "x"), tmp_path / "corpus", tmp_path)
    assert moved.audio == "corpus/deep/a.wav"
    assert manifest.relocate(moved, tmp_path, tmp_path / "elsewhere").audio == str(tmp_path / "corpus/deep/a.wav")


def test_a_slice_has_a_number_and_a_total() -> None:
    utterances = [Utterance(str(number), "a.wav", "x") for number in range(7)]
    slices = ManifestSlice.parse("1/3").siblings()
    assert [str(part) for part in slices] == ["part-1-of-3", "part-2-of-3", "part-3-of-3"]
    assert [utterance for part in slices for utterance in part.take(utterances)] == utterances
    for wrong in ("0/3", "4/3", "half"):
        with pytest.raises(UserError, match="a part has the form 3/8"):
            ManifestSlice.parse(wrong)


def test_an_utterance_of_text_alone_has_an_id_and_stays_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    lines = [{"id": "t", "audio": "", "text": "hello there"}, {"audio": "", "text": "nameless"}]
    (source / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = import_corpus("jsonl", source, tmp_path / "out")
    assert (summary.kept, summary.rejected, summary.hours, summary.shared) == (1, 1, 0.0, 0)
    [utterance] = manifest.read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert (utterance.id, utterance.audio, utterance.text) == ("t", "", "hello there")
    assert "needs an `id`" in (tmp_path / "out" / "rejected.jsonl").read_text()
