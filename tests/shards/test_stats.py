from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mtbi.cli import main
from mtbi.corpus.manifest import Utterance, write_lines, write_manifest
from mtbi.shards import stats
from mtbi.shards.read import Shards
from mtbi.shards.stats import Histogram

REASONS = ["truncated: 3 bytes", "silence: the peak is -inf dBFS", "truncated: 9 bytes", f"{'very ' * 20}odd"]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four utterances, one aligned, one of unknown duration; and four rejected records."""
    utterances = [
        Utterance("a", "a.wav", "one two", "x", 1.5, words=[("one", 0, 1), ("two", 1, 1.5)]),
        Utterance("b", "b.wav", "one two three four", "x", 2.5),
        Utterance("c", "c.wav", "five", "y", 9.9),
        Utterance("d", "d.wav", "five", "y"),
    ]
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    write_lines(tmp_path / "rejected.jsonl", ({"id": str(n), "audio": "", "reason": text} for n, text in enumerate(REASONS)))
    return tmp_path / "manifest.jsonl"


def test_a_manifest_and_what_was_rejected(manifest: Path) -> None:
    found = stats.read(str(manifest))
    assert (found.utterances, found.aligned, found.measured, found.speakers, found.words) == (4, 1, 3, 2, 8)
    assert found.hours == pytest.approx(13.9 / 3600)
    assert found.durations == Histogram(1.0, [0, 1, 1, 0, 0, 0, 0, 0, 0, 1], 9.9, whole=False)
    assert found.transcripts.by_label == {"0": 0, "1": 2, "2": 1, "3": 0, "4": 1}
    assert list(found.rejected.items())[:2] == [("truncated", 2), ("silence", 1)]


def test_shards_by_their_index(shard_folder: Path) -> None:
    found, shards = stats.read(str(shard_folder)), Shards(str(shard_folder))
    samples = [shards[number] for number in range(len(shards))]
    assert (found.utterances, found.aligned, found.speakers) == (60, 59, None)
    assert found.hours == pytest.approx(sum(len(sample.waveform) for sample in samples) / 16_000 / 3600)
    assert found.words == sum(len(sample.word_ids) for sample in samples)
    assert sum(found.durations.counts) == 60
    assert sum(found.transcripts.counts) == 59
    assert found.dialogues == sum(found.tasks.values()) == 300
    assert found.tasks["repeat"] == sum(one.task == "repeat" for sample in samples for one in sample.behaviours)


@pytest.mark.parametrize("largest", [1e-3, 0.37, 1.0, 9.99, 15.0, 35.2, 150.0, 3600.0])
def test_bins_are_few_and_take_every_value(largest: float) -> None:
    values = np.linspace(0, largest, 500)
    for whole in (False, True):
        found = Histogram.of(np.ceil(values) if whole else values, whole)
        assert sum(found.counts) == 500
        assert 1 <= len(found.counts) <= stats.MOST_BINS
        assert len(found.by_label) == len(found.counts)
        assert found.starts[-1] <= found.largest


def test_one_far_value_does_not_hide_the_others() -> None:
    found = Histogram.of(np.array([*range(1, 1000), 50_000]), whole=True)
    assert list(found.by_label)[-1] == "from 900"
    assert found.counts[-1] == 101
    assert Histogram.of(np.zeros(0)).by_label == {}


def test_lines_fit_the_terminal(manifest: Path) -> None:
    for columns in (60, 100):
        lines = stats.render(stats.read(str(manifest)), columns).splitlines()
        widest = max(map(len, lines))
        assert columns - 2 <= widest <= columns
    assert "speech      0.00 h, without 1 utterances of unknown duration" in lines
    assert any(line.startswith("  very very") and "… 1  █" in line for line in lines)


def test_pictures_and_json(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(manifest), "--plots", str(tmp_path / "plots"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["transcripts"]["counts"] == [0, 2, 1, 0, 1]
    assert record["rejected"]["truncated"] == 2
    pictures = sorted((tmp_path / "plots").iterdir())
    assert [picture.name for picture in pictures] == ["durations.png", "rejected.png", "transcripts.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_plots_name_the_extra_that_is_missing(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["data", "stats", str(manifest), "--plots", "plots"]) == 2
    assert capsys.readouterr() == ("", "mtbi: plots need matplotlib: pip install 'mtbi[plots]'\n")
