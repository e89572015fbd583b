from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.format.mds.reader import MDSReader

from mtbi import object_store
from mtbi.answers.store import AnswerStore
from mtbi.audio import codec
from mtbi.corpus.manifest import Utterance
from mtbi.errors import DamagedError, UnavailableError, UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards import shards
from mtbi.shards.shards import INDEX_NAME, Shards


def test_what_was_written_is_read(
    shard_folder: Path, corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat
) -> None:
    found, answered = Shards(str(shard_folder)), AnswerStore(answers)
    assert len(found) == 60
    assert len(found.index.shard_sizes) > 3
    for number, utterance in enumerate(corpus[1]):
        sample = found[number]
        assert (sample.id, sample.text) == (utterance.id, utterance.text)
        np.testing.assert_allclose(sample.waveform, codec.read(corpus[0] / utterance.audio), atol=1e-4)
        for one, kept in zip(sample.behaviours, answered.get(utterance.id), strict=True):
            np.testing.assert_array_equal(one.topk_logprobs, kept.topk_logprobs)
            np.testing.assert_array_equal(one.topk_ids, kept.topk_ids)
            assert (one.task, one.after_speech_ids, one.answer_ids) == (kept.task, kept.after_speech_ids, kept.answer_ids)
        words = [] if utterance.words is None else utterance.text.split()
        assert [ids.tolist() for ids in sample.word_ids] == chat.word_ids(words)


def test_the_index_has_every_length(shard_folder: Path) -> None:
    found = Shards(str(shard_folder))
    index = found.index
    for number in range(len(found)):
        sample, row = found[number], index.utterances[number]
        branches = index.branches[row["first_branch"] : row["first_branch"] + row["branches"]]
        words = index.words[row["first_word"] : row["first_word"] + row["words"]]
        assert row["samples"] == len(sample.waveform)
        assert [index.tasks[t] for t in branches["task"]] == [b.task for b in sample.behaviours]
        assert branches["prompt_tokens"].tolist() == [len(b.after_speech_ids) for b in sample.behaviours]
        assert branches["answer_tokens"].tolist() == [len(b.answer_ids) for b in sample.behaviours]
        assert words["tokens"].tolist() == [len(ids) for ids in sample.word_ids]
        assert words["start"].tolist() == sample.word_times[:, 0].tolist()


def test_several_folders_count_as_one(shard_folder: Path) -> None:
    both, one = Shards([str(shard_folder)] * 2), Shards(str(shard_folder))
    assert len(both) == 120
    assert both[75].id == one[15].id
    assert both.index.utterances[75]["first_branch"] == one.index.utterances[15]["first_branch"] + len(one.index.branches)
    assert sum(both.index.shard_sizes) == 120


def test_a_damaged_shard_is_reported_with_its_name(shard_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shard_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "shard.00001.mds"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = Shards(str(tmp_path / "copy"))
    assert found[0].id == "u00"
    with pytest.raises(UserError, match=r"shard.00001.mds: damaged"):
        found[found.index.shard_sizes[0]]
    path.unlink()
    with pytest.raises(UserError, match=r"shard.00001.mds: this shard is missing"):
        Shards(str(tmp_path / "copy"))[found.index.shard_sizes[0]]


def test_pickles_are_refused(shard_folder: Path, tmp_path: Path) -> None:
    with MDSWriter(out=str(tmp_path / "bad"), columns={"id": "pkl"}, hashes=["xxh64"]) as writer:
        for _ in range(60):
            writer.write({"id": {"any": "object"}})
    for name in (INDEX_NAME, "utterances.npy", "branches.npy", "words.npy"):
        shutil.copy(shard_folder / name, tmp_path / "bad" / name)
    with pytest.raises(UserError, match=r"index.json is refused: .*column_encodings=\['pkl'\]"):
        Shards(str(tmp_path / "bad"))
    np.save(tmp_path / "bad" / "words.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"words.npy"):
        Shards(str(tmp_path / "bad"))


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


def test_a_bad_recording_is_named(
    corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(corpus[0], tmp_path / "corpus"))
    (folder / "3.flac").write_bytes((folder / "3.flac").read_bytes()[:200])
    with pytest.raises(UserError, match=r"3\.flac \(utterance u03\): truncated"):
        shards.write(corpus[1], folder, AnswerStore(answers), chat, str(tmp_path / "out"))


@pytest.fixture
def slow_remote(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address whose files are those of `shard_folder`; a shard takes a while. S3 itself: test_store."""

    def fetch(_place: str, local: Path, _retries: int) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        if local.suffix == ".mds":
            time.sleep(1.5)
        shutil.copy(shard_folder / local.name, local)

    monkeypatch.setattr(object_store, "fetch", fetch)
    return "s3://speech/digits"


def test_a_ready_shard_is_read_while_another_is_fetched(slow_remote: str, tmp_path: Path) -> None:
    found = Shards(slow_remote, str(tmp_path))
    found[0]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(found.__getitem__, 59)
        time.sleep(0.05)
        found[1]
        assert not other.done()


def test_the_shard_used_longest_ago_is_dropped(slow_remote: str, shard_folder: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in sorted(shard_folder.glob("*.mds"))]
    found = Shards(slow_remote, str(tmp_path), cache_limit_gb=(sizes[0] + max(sizes[1:3])) / 1e9)
    ends = np.cumsum(found.index.shard_sizes).tolist()
    for number in (0, ends[0], 0, ends[1]):
        found[number]
    assert sorted(path.name for path in tmp_path.rglob("*.mds")) == ["shard.00000.mds", "shard.00002.mds"]


def test_a_shard_that_another_reader_drops_at_once_is_fetched_again(
    slow_remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, fetch, dropped = Shards(slow_remote, str(tmp_path)), object_store.fetch, []

    def fetch_and_drop(place: str, local: Path, retries: int = 5) -> None:
        fetch(place, local, retries)
        if len(dropped) < 2:
            local.unlink()
            dropped.append(local)

    monkeypatch.setattr(object_store, "fetch", fetch_and_drop)
    assert found[0].id == found[0].id
    assert len(dropped) == 2


def test_a_folder_with_other_things_is_not_touched(
    tmp_path: Path, corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        shards.write(corpus[1], corpus[0], AnswerStore(answers), chat, str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_wrong_places_and_versions_are_explained(shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards there"):
        Shards(str(tmp_path))
    shutil.copytree(shard_folder, tmp_path / "copy")
    index = tmp_path / "copy" / INDEX_NAME
    index.write_text(json.dumps({**json.loads(index.read_text()), "version": 99}))
    with pytest.raises(UserError, match="another version"):
        Shards(str(tmp_path / "copy"))


def test_answers_of_another_llm_are_refused(
    corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="another LLM, chat template or system prompt"):
        shards.write(corpus[1], corpus[0], AnswerStore(answers), ChatFormat(chat.tokenizer, "Hi"), str(tmp_path / "x"))


def test_none_of_the_streaming_packages_traps(shard_folder: Path, tmp_path: Path) -> None:
    """Its StreamingDataset keeps names in shared memory and locks in /tmp/streaming that outlive a killed run or are others'.

    Reading shards here needs neither, so leftovers do not matter and nothing is left over.
    """
    leftovers = [Path("/dev/shm/000000_locals"), Path("/dev/shm/000000_barrier")]
    made = [path for path in leftovers if not path.exists()]
    for path in made:
        path.write_bytes(b"of a killed run")
    script = f"""
import os
before = set(os.listdir("/dev/shm"))
from mtbi.data.shards import Shards
found = Shards({str(shard_folder)!r})
samples = sum(len(found[number].waveform) for number in range(60))
print(samples, sorted(name for name in set(os.listdir("/dev/shm")) - before if name[:6].isdigit()))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    try:
        readers = [
            subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) for _ in "ab"
        ]
        outputs = [reader.communicate(timeout=120)[0] for reader in readers]
    finally:
        for path in made:
            path.unlink()
    assert outputs[0] == outputs[1]
    assert outputs[0].endswith(" []\n")
    assert not list(tmp_path.iterdir())


def failing_reader(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """Reads of samples raise these errors one after the other, then succeed."""
    left, real = list(errors), MDSReader.get_item
    monkeypatch.setattr(shards, "READ_PAUSE_SECONDS", 0.0)

    def get_item(self: MDSReader, place: int) -> dict:
        if left:
            raise left.pop(0)
        return real(self, place)

    monkeypatch.setattr(MDSReader, "get_item", get_item)


def test_a_passing_error_of_the_file_system_is_tried_again(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_reader(monkeypatch, OSError(116, "Stale file handle"), OSError(5, "Input/output error"))
    assert Shards(str(shard_folder))[0].id == "u00"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(5, "Input/output error"), UnavailableError, r"shard\.00000\.mds: cannot be read now \(Input/output error\)"),
        (PermissionError(13, "Permission denied"), UserError, r"shard\.00000\.mds: may not be read \(Permission denied\)"),
        (ValueError("buffer is too small"), DamagedError, r"shard 0 cannot be read \(buffer is too small\)"),
    ],
)
def test_errors_of_reading_tell_the_lost_from_the_unavailable(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[UserError], message: str
) -> None:
    failing_reader(monkeypatch, *[error] * 9)
    with pytest.raises(UserError, match=message) as found:
        Shards(str(shard_folder))[0]
    assert type(found.value) is kind


def test_a_folder_that_goes_away_is_not_a_lost_shard(shard_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    found = Shards(str(copy))
    (copy / "shard.00001.mds").unlink()
    with pytest.raises(DamagedError, match=r"shard\.00001\.mds: this shard is missing"):
        found[found.index.shard_sizes[0]]
    copy.rename(tmp_path / "unmounted")
    with pytest.raises(UnavailableError, match="is its file system mounted"):
        found[0]


def test_a_sample_that_cannot_be_decoded_is_damaged(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Shards(str(shard_folder))
    good = found.columns(0)
    for spoilt in ({"audio": good["audio"][:100]}, {"tensors": good["tensors"][:50]}, {"answers": [{}]}):
        monkeypatch.setattr(found, "columns", lambda number, spoilt=spoilt: {**good, **spoilt})
        with pytest.raises(DamagedError, match="utterance 'u00' cannot be decoded"):
            found[0]
