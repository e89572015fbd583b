"""One rule for the sound of an utterance: import, alignment, shards and evaluation hear the same stretch of a long file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mtbi.answers.store import AnswerStore
from mtbi.audio import codec
from mtbi.benchmark.dialogues import from_items, read_items
from mtbi.benchmark.instruction_items import write_items
from mtbi.cli import main
from mtbi.corpus import recordings
from mtbi.corpus.align import align
from mtbi.corpus.aligner import Alignment, Clip
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards import stats
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards


@pytest.fixture
def long_file(corpus: tuple[Path, list[Utterance]], tmp_path: Path) -> tuple[Path, list[Utterance], list[Utterance]]:
    """The corpus as segments of one file: its folder, the segments, and the utterances that they are."""
    folder, utterances = corpus
    waves = [codec.read(folder / utterance.audio) for utterance in utterances[:12]]
    starts = np.cumsum([0, *map(len, waves)])
    (tmp_path / "long.flac").write_bytes(codec.encode(np.concatenate(waves)))
    segments = [
        Utterance(one.id, "long.flac", one.text, duration_s=len(wave) / 16_000, start_s=float(start) / 16_000, words=one.words)
        for one, wave, start in zip(utterances, waves, starts, strict=False)
    ]
    write_manifest(tmp_path / "manifest.jsonl", segments)
    return tmp_path, segments, utterances[:12]


def test_segments_sound_as_the_files_that_they_were(
    long_file: tuple[Path, list[Utterance], list[Utterance]], corpus: tuple[Path, list[Utterance]]
) -> None:
    folder, segments, originals = long_file
    assert read_manifest(folder / "manifest.jsonl") == segments
    for segment, original in zip(segments, originals, strict=True):
        assert np.array_equal(recordings.read(segment, folder), recordings.read(original, corpus[0]))


def test_the_import_and_the_check_hold_segments_inside_their_file(
    long_file: tuple[Path, list[Utterance], list[Utterance]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, segments, _ = long_file
    summary = import_corpus("jsonl", folder / "manifest.jsonl", folder / "out")
    assert (summary.kept, summary.shared, summary.reasons) == (12, 0, {})
    assert summary.hours == pytest.approx(sum(one.duration_s for one in segments) / 3600, rel=1e-4)
    assert [one.start_s for one in read_manifest(folder / "out/manifest.jsonl")] == [one.start_s for one in segments]
    numbers = stats.read(str(folder / "out/manifest.jsonl"))
    assert numbers.hours == pytest.approx(summary.hours, rel=1e-4)
    late = Utterance("late", "long.flac", "one", duration_s=2.0, start_s=900.0)
    write_manifest(folder / "manifest.jsonl", [*segments, late])
    assert main(["data", "check", str(folder / "manifest.jsonl")]) == 2
    shown = capsys.readouterr().out
    assert "late: outside the recording: the segment is from 900.00 to 902.00 s, but the file ends at" in shown
    assert "12 good, 1 rejected" in shown


class Even:
    """An aligner that gives all words the same length, and notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def align(self, clips: list[Clip]) -> list[Alignment]:
        self.heard += [len(clip.wave) for clip in clips]
        return [Alignment([(n * len(c.wave) / 16_000 / len(c.units),) * 2 for n in range(len(c.units))]) for c in clips]


def test_word_times_begin_at_the_segment(long_file: tuple[Path, list[Utterance], list[Utterance]]) -> None:
    folder, segments, _ = long_file
    even = Even()
    for segment, aligned in zip(segments, align(segments, folder, even), strict=True):
        assert aligned.words is not None
        assert aligned.words[0][1] == 0.0
        assert aligned.words[-1][2] == pytest.approx(segment.duration_s, abs=1e-4)
    assert even.heard == [round(segment.duration_s * 16_000) for segment in segments]


def test_shards_of_segments_are_those_of_the_files(
    long_file: tuple[Path, list[Utterance], list[Utterance]],
    corpus: tuple[Path, list[Utterance]],
    answers: Path,
    chat: ChatFormat,
) -> None:
    folder, segments, originals = long_file
    for name, utterances, place in (("parts", segments, folder), ("files", originals, corpus[0])):
        assert write_shards(utterances, place, AnswerStore(answers), chat, str(folder / name)) == 12
    parts, files = Shards(str(folder / "parts")), Shards(str(folder / "files"))
    for number in range(12):
        assert parts[number].id == files[number].id
        assert np.array_equal(parts[number].waveform, files[number].waveform)
        assert np.array_equal(parts[number].word_times, files[number].word_times)


def test_items_of_an_evaluation_are_about_their_segment(long_file: tuple[Path, list[Utterance], list[Utterance]]) -> None:
    folder, segments, _ = long_file
    write_items(segments, folder, folder / "items.jsonl")
    assert all("start_s" in json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines())
    by_id = {segment.id: segment for segment in segments}
    items = read_items("items", folder / "items.jsonl", prompt_first=False)
    assert len({item.cluster for item in items}) == 12
    for turn in from_items(items):
        assert np.array_equal(turn.waveform, recordings.read(by_id[turn.dialogue.utterance], folder))


def test_another_duration_is_refused_where_the_file_is_the_utterance(corpus: tuple[Path, list[Utterance]]) -> None:
    utterance = Utterance("u", "0.flac", "one", duration_s=60.0)
    with pytest.raises(UserError, match=r"duration differs: 60\.00 s in the record"):
        recordings.read(utterance, corpus[0])


def test_real_segments_of_meetings(speech: Path, tmp_path: Path) -> None:
    summary = import_corpus("jsonl", speech / "ami_30s/manifest_segments.jsonl", tmp_path)
    assert summary.kept > 90
    assert set(summary.reasons) <= {"no transcript", "too short", "not listed"}
    utterances = read_manifest(tmp_path / "manifest.jsonl")
    whole: dict[str, np.ndarray] = {}
    for utterance in utterances[:20]:
        wave = whole.setdefault(utterance.audio, codec.read(utterance.audio))
        first = round((utterance.start_s or 0) * 16_000)
        assert np.array_equal(recordings.read(utterance, tmp_path), wave[first : first + round(utterance.duration_s * 16_000)])
