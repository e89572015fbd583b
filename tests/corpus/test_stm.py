"""STM transcripts, in the layout of TED-LIUM and on real meetings."""

from __future__ import annotations

from pathlib import Path

import pytest
from imported import rejected_kinds, write_noise

from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest
from mtbi.corpus.stm import plain

LINES = """;; a comment
Talk_2010 1 Talk_2010 0.50 2.25 <o,f0,female> we appropriated land for(2) { trails / tracks }
Talk_2010 1 inter_segment_gap 2.25 3.00 <o,,unknown> ignore_time_segment_in_scoring
Talk_2010 1 ann 3.00 4.00
Talk_2010 1 ann 4.00 9.00 too far
Talk_2010 1 ann 5.00 x words
Talk_2010 1 ann
Gone 1 ann 0.00 1.00 hello there
"""


def test_segments_of_talks(tmp_path: Path) -> None:
    source = tmp_path / "TEDLIUM"
    write_noise(source / "train/sph/Talk_2010.wav", 6.0)
    write_noise(source / "test/sph/Talk_2010.wav", 1.0)
    (source / "train/stm").mkdir()
    (source / "train/stm/Talk_2010.stm").write_text(LINES)
    summary = import_corpus("stm", source, tmp_path / "out")
    (one,) = read_manifest(tmp_path / "out/manifest.jsonl")
    assert (one.text, one.speaker, one.start_s, one.duration_s, one.split) == (
        "we appropriated land for trails", "Talk_2010", 0.5, 1.75, "train",
    )  # fmt: skip
    assert one.audio.endswith("train/sph/Talk_2010.wav")
    assert summary.reasons["not scored"] == 1
    assert rejected_kinds(tmp_path / "out") == {
        "Talk_2010-2.25-3.00-inter_segment_gap": "not scored",
        "Talk_2010-3.00-4.00-ann": "no transcript",
        "Talk_2010-4.00-9.00-ann": "outside the recording",
        "Talk_2010-5.00-x-ann": "bad record",
        "Talk_2010.stm:7": "bad record",
        "Gone-0.00-1.00-ann": "no recording",
        "test/sph/Talk_2010": "not listed",
    }


def test_a_mark_is_a_word_and_a_label_is_none(tmp_path: Path) -> None:
    write_noise(tmp_path / "talk.wav", 4.0)
    (tmp_path / "talk.stm").write_text("talk 1 a 0 2 <unk> hello\ntalk 1 a 2 4 <NA> bye\n")
    import_corpus("stm", tmp_path, tmp_path / "out")
    assert [one.text for one in read_manifest(tmp_path / "out/manifest.jsonl")] == ["<unk> hello", "bye"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("i've { um / uh / @ } as far", "i've  um  as far"),
        ("{ a { b / c } / d } e", " a  b   e"),
        ("i am a (farmer)", "i am a farmer"),
        ("yes (laughter) no", "yes (laughter) no"),
        ("{SMACK} red @ cloud(3)", "{SMACK} red   cloud"),
        ("a/b {x", "a/b {x"),
    ],
)
def test_the_notation_of_scoring_is_removed(written: str, words: str) -> None:
    assert plain(written).split() == words.split()


def test_real_meetings_are_those_of_the_manifest_of_segments(speech: Path, tmp_path: Path) -> None:
    by_stm = import_corpus("stm", speech / "ami_30s", tmp_path / "stm")
    by_lines = import_corpus("jsonl", speech / "ami_30s/manifest_segments.jsonl", tmp_path / "jsonl")
    assert by_stm.kept == by_lines.kept
    texts = [
        sorted((u.text, u.start_s) for u in read_manifest(tmp_path / name / "manifest.jsonl")) for name in ("stm", "jsonl")
    ]
    assert texts[0] == texts[1]
