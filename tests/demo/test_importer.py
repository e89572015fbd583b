"""The importer of the Free Spoken Digit Dataset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mtbi.audio import codec
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest


def test_fsdd(speech: Path, tmp_path: Path) -> None:
    summary = import_corpus("fsdd", speech / "fsdd", tmp_path)
    utterances = read_manifest(tmp_path / "manifest.jsonl")
    assert summary.kept == len(utterances) == 2500
    assert (summary.rejected, summary.speakers) == (0, 5)
    assert not (tmp_path / "rejected.jsonl").read_text()
    assert Counter(u.split for u in utterances) == {"train": 1600, "test_known": 400, "test_unseen": 500}
    assert {u.speaker for u in utterances if u.split == "test_unseen"} == {"fsdd-theo"}
    assert {int(u.id.split("_")[2]) for u in utterances if u.split == "test_known"} == set(range(40, 50))
    one = next(u for u in utterances if u.id == "fsdd-7_george_3")
    assert (one.text, one.speaker, one.language, one.sample_rate) == ("seven", "fsdd-george", "en", 8000)
    assert len(codec.read(tmp_path / one.audio)) / 16000 == pytest.approx(one.duration_s, abs=1e-3)
