"""Shards in parts, and the index that joins them."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi import recipe as recipes
from mtbi.answers.store import AnswerStore
from mtbi.corpus.manifest import ManifestSlice, Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.encoders.build import build_encoder
from mtbi.shards import features
from mtbi.shards.index import TABLES
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards

WritePart = Callable[..., int]


@pytest.fixture
def write_part(corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat, tmp_path: Path) -> WritePart:
    """Writes one part of the corpus."""

    def write(number: int, of: int, made_from: str = "manifest", utterances: list[Utterance] | None = None) -> int:
        part = ManifestSlice(number, of)
        some = part.take(corpus[1] if utterances is None else utterances)
        store = AnswerStore(answers, some)
        out = str(tmp_path / "out")
        return write_shards(some, corpus[0], store, chat, out, shard_bytes=1 << 19, part=part, made_from=made_from)

    return write


def same(one: Shards, other: Shards) -> None:
    """Both hold the same utterances in the same order, and the same tables."""
    for table in TABLES:
        np.testing.assert_array_equal(getattr(one.index, table), getattr(other.index, table))
    assert one.index.tasks == other.index.tasks
    for number in range(len(one)):
        assert one.columns(number) == other.columns(number)


def test_parts_are_joined_to_what_one_run_writes(write_part: WritePart, shard_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert [write_part(3, 3), write_part(1, 3)] == [20, 20]
    assert not (out / "mtbi_index.json").exists()
    with pytest.raises(UserError, match="no shards there"):
        Shards(str(out))
    assert write_part(2, 3) == 20
    joined, whole = Shards(str(out)), Shards(str(shard_folder))
    same(joined, whole)
    for name in TABLES:
        assert (out / f"{name}.npy").read_bytes() == (shard_folder / f"{name}.npy").read_bytes()
    assert sum(joined.index.shard_sizes) == 60
    assert [origin.address for origin in joined.index.origins] == [str(out)]  # one source, for `data.weights`
    assert [path.name for path in out.glob(".*")] == []


def test_a_part_is_written_once_and_a_killed_one_again(write_part: WritePart, tmp_path: Path) -> None:
    write_part(1, 2)
    (tmp_path / "out" / "part-2-of-2.partial").mkdir()  # of a killed run
    (tmp_path / "out" / "part-2-of-2.partial" / "shard.00000.mds").write_bytes(b"half")
    shard = tmp_path / "out" / "part-1-of-2" / "shard.00000.mds"
    before = shard.stat().st_mtime_ns
    assert [write_part(1, 2), write_part(2, 2), write_part(2, 2)] == [30, 30, 30]
    assert shard.stat().st_mtime_ns == before
    assert len(Shards(str(tmp_path / "out"))) == 60
    (tmp_path / "out" / "mtbi_index.json").unlink()  # killed while it joined the parts
    write_part(1, 2)
    assert len(Shards(str(tmp_path / "out"))) == 60


def test_parts_of_other_sources_are_refused(
    write_part: WritePart, corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    write_part(1, 2)
    for number in (1, 2):
        with pytest.raises(UserError, match=r"part-1-of-2: this part was made from another source"):
            write_part(number, 2, "another manifest")
    with pytest.raises(UserError, match=r"holds part-1-of-2, a part of another division"):
        write_part(1, 3)
    with pytest.raises(UserError, match="not empty"):
        write_shards(corpus[1], corpus[0], AnswerStore(answers), chat, str(tmp_path / "out"))
    write_shards(corpus[1], corpus[0], AnswerStore(answers), chat, str(tmp_path / "whole"))
    with pytest.raises(UserError, match="whole: holds other shards already"):
        write_shards(corpus[1][:30], corpus[0], AnswerStore(answers), chat, str(tmp_path / "whole"), part=ManifestSlice(1, 2))


def test_parts_without_answers_are_empty(write_part: WritePart, corpus: tuple[Path, list[Utterance]], tmp_path: Path) -> None:
    strangers = [Utterance(f"x{number}", "", "one two") for number in range(20)]
    some = [*corpus[1][:20], *strangers, *corpus[1][20:40]]
    assert [write_part(number, 3, utterances=some) for number in (1, 2, 3)] == [20, 0, 20]
    assert [len(Shards(str(tmp_path / "out"))[number].behaviours) for number in (0, 39)] == [5, 5]
    alone = tmp_path / "out" / "part-2-of-3"
    assert json.loads((alone / "mtbi_index.json").read_text())["utterances"] == 0


def test_no_part_with_an_answer_is_an_error(write_part: WritePart) -> None:
    strangers = [Utterance(f"x{number}", "", "one two") for number in range(4)]
    assert write_part(1, 2, utterances=strangers) == 0
    with pytest.raises(UserError, match="none of the parts has an utterance"):
        write_part(2, 2, utterances=strangers)


def test_parts_written_at_once_are_joined(write_part: WritePart, shard_folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_part, args=(number, 4)) for number in (1, 2, 3, 4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    same(Shards(str(tmp_path / "out")), Shards(str(shard_folder)))


def test_features_in_parts_are_those_of_one_run(shard_folder: Path, tmp_path: Path) -> None:
    source = Shards(str(shard_folder))
    encoder = build_encoder(recipes.load("demo").model.encoder, torch.float32, torch.device("cpu")).eval()
    whole = str(tmp_path / "whole")
    features.write(source, encoder, "demo", whole, shard_bytes=1 << 19)
    shards = len(source.index.shard_sizes)
    written = [
        features.write(source, encoder, "demo", str(tmp_path / "out"), part=ManifestSlice(number, shards + 1), made_from="x")
        for number in range(1, shards + 2)
    ]
    assert sorted(written) == sorted([0, *source.index.shard_sizes])  # one part more than there are shards
    joined, one = Shards(str(tmp_path / "out")), Shards(whole)
    assert joined.index.encoded == "demo"
    assert joined.index.feature_width == one.index.feature_width > 0
    for table in TABLES:
        np.testing.assert_array_equal(getattr(joined.index, table), getattr(one.index, table))
    for number in range(60):
        found, wanted = joined[number], one[number]
        assert found.id == wanted.id
        assert found.features is not None
        assert wanted.features is not None
        np.testing.assert_allclose(found.features.astype(np.float32), wanted.features.astype(np.float32), atol=2e-3)
