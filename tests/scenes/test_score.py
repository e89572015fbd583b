"""Scores of files, and the commands `mtbi score` and `mtbi data convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtbi.cli import main
from mtbi.errors import UserError
from mtbi.scenes import SceneReport, ScoreSettings, read_segments, score_files

REFERENCE = """m1 1 A 0 2 One, two three four.
m1 1 B 4 6 five six
m2 1 A 0 2 [noise] seven
"""
HYPOTHESIS = """m1 1 x 0 2 one two three four
m1 1 x 4 6 five six
m2 1 A 0 1 seven
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a reference and a hypothesis."""
    monkeypatch.chdir(tmp_path)
    Path("ref.stm").write_text(REFERENCE)
    Path("hyp.stm").write_text(HYPOTHESIS)
    return tmp_path


def scored(hypothesis: str, reference: str, **settings: Any) -> SceneReport:
    """The scores of two files."""
    return score_files(read_segments(Path(hypothesis)), read_segments(Path(reference)), ScoreSettings(**settings))


def rates(report: SceneReport) -> dict[str, float | None]:
    """The total of each measure."""
    return {measure: found and found.counts.rate for measure, found in report.total.words.items()}


def test_sessions_and_their_total(work: Path) -> None:
    report = scored("hyp.stm", "ref.stm", normaliser="words")
    assert rates(report) == {"cpWER": 4 / 7, "tcpWER": 4 / 7, "ORC-WER": 0, "tcORC-WER": 0, "SA-WER": 12 / 7}
    assert [one.words["cpWER"].counts.errors for one in report.sessions if one.words["cpWER"]] == [4, 0]
    assert [one.speakers for one in (*report.sessions, report.total)] == [(1, 2, 0), (1, 1, 1), (2, 3, 1)]
    times = report.total.diarization
    assert times is not None
    assert (times.speech, times.missed, times.false_alarm, times.confusion) == (6, 1, 0, 2)
    assert report.notes == []


def test_texts_are_compared_as_written_unless_a_form_is_asked_for(work: Path) -> None:
    assert rates(scored("hyp.stm", "ref.stm"))["ORC-WER"] == 3 / 8  # "One," and "four." are other words, "[noise]" is missing
    assert rates(scored("hyp.stm", "ref.stm", normaliser="plain"))["ORC-WER"] == 1 / 8
    assert rates(scored("hyp.stm", "ref.stm", normaliser="english"))["ORC-WER"] == 0


def test_characters_of_scripts_without_spaces_are_words(work: Path) -> None:
    Path("a.stm").write_text("m1 1 A 0 2 你好吗\n", encoding="utf-8")
    Path("b.stm").write_text("m1 1 A 0 2 你好 吧\n", encoding="utf-8")
    assert rates(scored("b.stm", "a.stm"))["cpWER"] == 1 / 3


def test_rttm_has_der_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", "ref.stm", "ref.rttm"]) == 0
    report = scored("ref.rttm", "ref.stm")
    assert report.total.words == {}
    assert report.total.diarization is not None
    assert report.total.diarization.rate == 0
    assert report.notes == ["ref.rttm has no words: DER and the number of speakers alone"]


def test_transcripts_without_times_have_no_timed_scores(work: Path) -> None:
    segments = [{"session_id": "m1", "speaker": "x", "words": "one two three four"}, {"session_id": "m1", "speaker": "y"}]
    segments[1]["words"] = "five six"
    Path("hyp.json").write_text(json.dumps([*segments, {"session_id": "m2", "speaker": "x", "words": "seven"}]))
    report = scored("hyp.json", "ref.stm", normaliser="words")
    assert rates(report) == {"cpWER": 0, "ORC-WER": 0}
    assert report.total.diarization is None
    assert "hyp.json has no times: no tcpWER, tcORC-WER and DER" in report.notes[0]


def test_overlapping_turns_of_one_speaker_are_named(work: Path) -> None:
    Path("hyp.stm").write_text("m1 1 x 0 3 a\nm1 1 x 2 4 b\nm2 1 x 0 1 c\n")
    assert scored("hyp.stm", "ref.stm").notes == ["hyp.stm: segments of one speaker overlap; their words are not mixed: m1"]


def test_bounds_and_missing_scores_are_named(work: Path) -> None:
    crowd = "".join(f"m1 1 s{number} {number} {number + 1} x\n" for number in range(11))
    Path("crowd.stm").write_text(crowd)
    report = scored("crowd.stm", "crowd.stm")
    assert (report.total.words["ORC-WER"], report.total.words["cpWER"] is None) == (None, False)
    assert report.notes[0] == "ORC-WER: more than 10 speakers in m1, so there is no total"
    long = "".join(f"m1 1 {turn % 4} {turn} {turn + 1} {'x ' * 20}\n" for turn in range(20))
    Path("long.stm").write_text(long)
    assert main(["score", "long.stm", "long.stm"]) == 0
    assert scored("long.stm", "long.stm").notes[0].startswith("ORC-WER: an upper bound by greedy search")


@pytest.mark.parametrize(
    ("hypothesis", "message"),
    [
        ("m3 1 x 0 2 one\n", "have no session in common: m3, and m1, m2"),
        (HYPOTHESIS + "m3 1 x 0 1 no\n", "hyp.stm has sessions that ref.stm lacks: m3; leave them out"),
        ("m1 1 x 0 2 one\n", "hyp.stm lacks sessions of ref.stm: m2; add them, or count them"),
    ],
)
def test_other_sessions_are_refused(work: Path, hypothesis: str, message: str) -> None:
    Path("hyp.stm").write_text(hypothesis)
    with pytest.raises(UserError) as caught:
        scored("hyp.stm", "ref.stm")
    assert message in str(caught.value)


def test_a_missing_session_may_be_empty(work: Path) -> None:
    Path("hyp.stm").write_text("".join(HYPOTHESIS.splitlines(keepends=True)[:2]))
    report = scored("hyp.stm", "ref.stm", normaliser="words", missing_is_empty=True)
    assert rates(report)["cpWER"] == 5 / 7
    assert report.sessions[1].speakers == (0, 1, 0)


def test_words_and_times_must_meet(work: Path) -> None:
    Path("hyp.json").write_text('[{"session_id": "m1", "speaker": "x", "words": "one"}]')
    Path("ref.rttm").write_text("SPEAKER m1 1 0 1 <NA> <NA> A <NA> <NA>\n")
    with pytest.raises(UserError, match="words or times must be in both files"):
        scored("hyp.json", "ref.rttm")


def test_the_command_prints_a_table(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "hyp.stm", "ref.stm", "--normalise", "words", "--collar", "3", "--der-collar", "0.25"]) == 0
    header, *rows, _, total, _, legend = capsys.readouterr().out.splitlines()
    assert header.split()[:7] == ["session", "words", "cpWER", "tcpWER", "ORC-WER", "tcORC-WER", "SA-WER"]
    assert [row.split()[0] for row in rows] == ["m1", "m2"]
    assert total.split()[:7] == ["total", "7", "57.14", "57.14", "0.00", "0.00", "171.43"]
    assert total.split()[-1] == "2/3"
    for part in ("cut at apostrophes", "collar of 3 s", "collar of 0.25 s", "right in 1 of 2 sessions"):
        assert part in legend


def test_the_command_prints_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "hyp.stm", "ref.stm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["hypothesis"], found["settings"]["normaliser"]) == ("hyp.stm", "none")
    assert found["total"]["cpWER"]["errors"] == 7
    assert found["sessions"][0]["cpWER"]["speakers"] == [["A", "x"], ["B", None]]
    assert found["sessions"][0]["DER"]["confusion"] == 2
    assert found["total"]["speakers"] == {"hypothesis": 2, "reference": 3, "sessions_right": 1}


def test_convert_writes_one_session(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", "ref.stm", "m2.srt", "--session", "m2"]) == 0
    assert Path("m2.srt").read_text() == "1\n00:00:00,000 --> 00:00:02,000\n[A] [noise] seven\n"
    assert capsys.readouterr().out == "m2.srt: 1 segments\n"


def test_the_examples_of_meeteval(speech: Path) -> None:
    folder = speech / "scoring_refs" / "meeteval"
    report = score_files(read_segments(folder / "hyp.stm"), read_segments(folder / "ref.stm"), ScoreSettings())
    for measure, expected in {"cpWER": (0.0323, 0.7667), "tcpWER": (0.0323, 0.7667), "ORC-WER": (0.0323, 0.2333)}.items():
        found = [one.words[measure] for one in report.sessions]
        assert [round(one.counts.rate or 0, 4) for one in found if one] == list(expected)


def test_meetings_as_one_speaker(speech: Path, tmp_path: Path) -> None:
    path = speech / "ami_30s" / "ref.seglst.json"
    (tmp_path / "one.json").write_text(json.dumps([{**one, "speaker": "x"} for one in json.loads(path.read_text())]))
    report = score_files(read_segments(tmp_path / "one.json"), read_segments(path), ScoreSettings())
    assert {measure: round(rate or 0, 3) for measure, rate in rates(report).items()} == {
        "cpWER": 0.609, "tcpWER": 0.609, "ORC-WER": 0, "tcORC-WER": 0,
    }  # fmt: skip
    assert report.total.diarization is not None
    assert round(report.total.diarization.rate or 0, 4) == 0.3785  # as md-eval counts
    same = score_files(read_segments(path), read_segments(path), ScoreSettings())
    assert set(rates(same).values()) == {0}


def test_a_meeting_of_a_diarization_system(speech: Path) -> None:
    folder = speech / "scoring_refs" / "speechbrain_rttm"
    hypothesis, reference = (read_segments(folder / side / "ES2014c.rttm") for side in ("sys", "ref"))
    report = score_files(hypothesis, reference, ScoreSettings())
    assert report.total.diarization is not None
    assert round(report.total.diarization.rate or 0, 4) == 0.1947  # as md-eval counts
    assert report.total.speakers == (7, 4, 0)
    assert "skipped 4 SPKR-INFO lines" in " ".join(report.notes)
