from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtbi.errors import DamagedError, UserError
from mtbi.shards.index import INDEX_NAME, Origin
from mtbi.shards.read import Shards


def test_the_index_has_every_length(shard_folder: Path) -> None:
    found = Shards(str(shard_folder))
    index = found.index
    for number in range(len(found)):
        sample, row = found[number], index.utterances[number]
        branches = index.branches[row["first_branch"] : row["first_branch"] + row["branches"]]
        words = index.words[row["first_word"] : row["first_word"] + row["words"]]
        assert row["samples"] == len(sample.waveform)
        assert [index.tasks[t] for t in branches["task"]] == [b.task for b in sample.behaviours]
        assert branches["prompt_tokens"].tolist() == [len(b.prompt_ids) for b in sample.behaviours]
        assert branches["answer_tokens"].tolist() == [len(b.answer_ids) for b in sample.behaviours]
        assert words["tokens"].tolist() == [len(ids) for ids in sample.word_ids]
        assert words["start"].tolist() == sample.word_times[:, 0].tolist()


def test_several_folders_count_as_one(shard_folder: Path) -> None:
    both, one = Shards([str(shard_folder)] * 2), Shards(str(shard_folder))
    assert len(both) == 120
    assert both[75].id == one[15].id
    assert both.index.utterances[75]["first_branch"] == one.index.utterances[15]["first_branch"] + len(one.index.branches)
    assert sum(both.index.shard_sizes) == 120


def test_the_index_counts_the_text_around_the_sound(surrounded_folder: Path, shard_folder: Path, tmp_path: Path) -> None:
    found, mixed = Shards(str(surrounded_folder)), Shards([str(shard_folder), str(surrounded_folder)])
    lengths = [len(found[number].heard) for number in range(len(found))]
    assert max(lengths) > min(lengths) > 0
    assert found.index.utterances["around"].tolist() == lengths
    assert mixed.index.utterances["around"].tolist() == [0] * 60 + lengths
    assert "around" not in (Shards(str(shard_folder)).index.utterances.dtype.names or ())
    versions = [json.loads((folder / INDEX_NAME).read_text())["version"] for folder in (shard_folder, surrounded_folder)]
    assert versions == [2, 3]
    found.index.utterances = found.index.utterances.copy()
    found.index.utterances["around"][0] += 1
    with pytest.raises(DamagedError, match="its texts around the sound are not those of the index"):
        found[0]


@pytest.mark.parametrize("name", [INDEX_NAME, "index.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1', '{"version": 1}'])
def test_a_damaged_index_is_one_message(shard_folder: Path, tmp_path: Path, name: str, content: str) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=r"again\."):
        Shards(str(copy))


def test_an_index_that_does_not_fit_its_shards_is_refused(shard_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    branches = np.load(copy / "branches.npy")
    np.save(copy / "branches.npy", branches[:-5])
    with pytest.raises(UserError, match="does not fit"):
        Shards(str(copy))
    np.save(copy / "branches.npy", branches)
    described = json.loads((copy / "index.json").read_text())
    described["shards"][0]["raw_data"]["hashes"] = {}
    (copy / "index.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="no xxh64 checksum"):
        Shards(str(copy))


@pytest.mark.parametrize("name", ["utterances", "branches", "words"])
def test_a_changed_number_of_a_table_is_damage_and_not_another_plan(shard_folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    content = bytearray((copy / f"{name}.npy").read_bytes())
    content[-60] ^= 1
    (copy / f"{name}.npy").write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.npy: damaged \(its checksum is not|does not fit"):
        Shards(str(copy))
    index = json.loads((copy / INDEX_NAME).read_text())
    shutil.copy(shard_folder / f"{name}.npy", copy)
    (copy / INDEX_NAME).write_text(json.dumps({**index, "tasks": index["tasks"][::-1]}))
    with pytest.raises(UserError, match=rf"{INDEX_NAME}: damaged"):
        Shards(str(copy))
    del index["sums"]  # as versions wrote it that kept none
    (copy / INDEX_NAME).write_text(json.dumps(index))
    assert len(Shards(str(copy))) == 60


def test_sources_have_short_names_and_their_utterances(shard_folder: Path, text_folder: Path, tmp_path: Path) -> None:
    index = Shards([str(shard_folder), str(text_folder)]).index
    assert index.source_names == ["digits", "shards"]
    assert [index.source_of(number) for number in (0, 59, 60, 67)] == [0, 0, 1, 1]
    origins = [Origin(address, 1, False) for address in ("s3://one/a/shards", "s3://two/a/shards/", "s3://two/b/shards")]
    assert replace(index, origins=origins).source_names == ["one/a/shards", "two/a/shards", "two/b/shards"]
    assert replace(index, origins=origins[:1]).source_names == ["shards"]
    assert replace(index, origins=[origins[0]] * 2).source_names == [origins[0].address] * 2
    assert replace(index, origins=[]).source_of(67) == 0
