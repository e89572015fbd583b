"""Recordings on a real S3 server."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from servers.faulty_proxy import Faults, faulty_proxy
from servers.swift import swift_server

from mtbi.answers.store import AnswerStore
from mtbi.audio import codec, remote
from mtbi.corpus import recordings
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import Utterance, read_manifest
from mtbi.errors import UnavailableError, UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards

pytestmark = pytest.mark.slow
SECONDS = 240


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four minutes of noise, in FLAC."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, SECONDS * 16_000).astype(np.float32)
    path = tmp_path_factory.mktemp("long") / "long.flac"
    path.write_bytes(codec.encode(noise))
    return path


@pytest.fixture(scope="module")
def corpus_tar(tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, list[Utterance]]) -> tuple[Path, dict[str, str]]:
    """The corpus in one archive, and where each recording lies in it."""
    path = tmp_path_factory.mktemp("tar") / "corpus.tar"
    with tarfile.open(path, "w") as archive:
        for utterance in corpus[1]:
            archive.add(corpus[0] / utterance.audio, utterance.audio)
    with tarfile.open(path) as archive:
        return path, {member.name: f"corpus.tar:{member.offset_data}:{member.size}" for member in archive}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, long_file: Path, corpus_tar: tuple[Path, dict[str, str]]
) -> Iterator[dict[str, str]]:
    """The environment of a running server that holds both."""
    with pytest.MonkeyPatch.context() as patch, swift_server(tmp_path_factory.mktemp("swift")) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        store = boto3.client("s3", endpoint_url=environment["S3_ENDPOINT_URL"])
        store.create_bucket(Bucket="sound")
        for path in (long_file, corpus_tar[0]):
            store.upload_file(str(path), "sound", path.name)
        store.put_object(Bucket="sound", Key="empty.wav", Body=b"")
        yield environment


@pytest.fixture
def proxy(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Counts the requests to the server. No block is known yet."""
    monkeypatch.setattr(remote, "BLOCKS", remote.Blocks())
    with faulty_proxy(server["S3_ENDPOINT_URL"]) as (address, faults):
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield faults


def segment(start: float, seconds: float, audio: str = "s3://sound/long.flac") -> Utterance:
    return Utterance(f"{start}", audio, "one", duration_s=seconds, start_s=start)


def test_one_segment_of_a_long_file_fetches_a_part_of_it(proxy: Faults, long_file: Path) -> None:
    wave = recordings.read(segment(200.25, 3.5), "")
    local = recordings.read(segment(200.25, 3.5, long_file.name), long_file.parent)
    np.testing.assert_array_equal(wave, local)
    assert proxy.sent_bytes < long_file.stat().st_size * 0.8


def test_segments_of_a_whole_file_fetch_each_byte_once(proxy: Faults, long_file: Path) -> None:
    for start in range(0, SECONDS, 10):
        local = recordings.read(segment(start, 10, long_file.name), long_file.parent)
        np.testing.assert_array_equal(recordings.read(segment(start, 10), ""), local)
    size = long_file.stat().st_size
    assert proxy.sent_bytes == size
    assert proxy.requests == -(-size // remote.BLOCK_BYTES)


def manifest_of(corpus: tuple[Path, list[Utterance]], places: dict[str, str], folder: Path) -> Path:
    """A manifest of the corpus in the archive on the server, with two recordings that are not there."""
    lines = [one.to_json() | {"audio": f"s3://sound/{places[one.audio]}"} for one in corpus[1]]
    lines += [{"id": "lost", "audio": "s3://sound/lost.wav", "text": "one"}]
    lines += [{"id": "beyond", "audio": "s3://sound/corpus.tar:99999999:10", "text": "one"}]
    lines += [{"id": "empty", "audio": "s3://sound/empty.wav", "text": "one"}]
    folder.mkdir()
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_from_an_archive_on_s3_to_the_same_shards(
    proxy: Faults,
    corpus: tuple[Path, list[Utterance]],
    corpus_tar: tuple[Path, dict[str, str]],
    answers: Path,
    chat: ChatFormat,
    shard_folder: Path,
    tmp_path: Path,
) -> None:
    source = manifest_of(corpus, corpus_tar[1], tmp_path / "source")
    summary = import_corpus("jsonl", source, tmp_path / "out", allow_outside=True)
    assert (summary.kept, summary.rejected) == (60, 3)
    assert set(summary.reasons) == {"no such file", "truncated", "empty file"}
    # Eight threads decode, and each block is fetched once. Two recordings are not there, and one is asked for by itself.
    blocks = -(-corpus_tar[0].stat().st_size // remote.BLOCK_BYTES)
    assert proxy.requests <= blocks + 2
    utterances = read_manifest(tmp_path / "out" / "manifest.jsonl")
    write_shards(utterances, tmp_path, AnswerStore(answers), chat, str(tmp_path / "shards"), shard_bytes=1 << 19)
    found, wanted = Shards(str(tmp_path / "shards")), Shards(str(shard_folder))
    for number in range(60):
        assert found.columns(number) == wanted.columns(number)
    with pytest.raises(UserError, match="none of the 63 records can be used"):
        import_corpus("jsonl", source, tmp_path / "inside")  # addresses are outside the folder


@pytest.mark.parametrize("fault", ["503", "dropped", "truncated"])
def test_a_store_that_fails_for_a_while_is_asked_again(proxy: Faults, long_file: Path, fault: str) -> None:
    proxy.waiting = [fault]
    wave = recordings.read(segment(100, 5), "")
    np.testing.assert_array_equal(wave, recordings.read(segment(100, 5, long_file.name), long_file.parent))


def test_a_store_that_fails_rejects_no_recording(
    proxy: Faults, corpus: tuple[Path, list[Utterance]], corpus_tar: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    source = manifest_of(corpus, corpus_tar[1], tmp_path / "source")
    proxy.waiting = ["expired"] * 1000
    with pytest.raises(UnavailableError, match="refuses access"):
        import_corpus("jsonl", source, tmp_path / "out", allow_outside=True)
    assert not (tmp_path / "out").exists()
    proxy.waiting = []
    recordings.read(segment(0, 1), "")  # the first block is there
    proxy.waiting = ["expired"] * 1000
    with pytest.raises(UnavailableError, match="refuses access"):  # in the middle of a file
        recordings.read(segment(200, 5), "")


def test_a_file_that_changes_while_it_is_read_is_noticed(proxy: Faults, server: dict[str, str], long_file: Path) -> None:
    store = boto3.client("s3", endpoint_url=server["S3_ENDPOINT_URL"])
    store.upload_file(str(long_file), "sound", "changing.flac")
    recordings.read(segment(0, 1, "s3://sound/changing.flac"), "")
    store.put_object(Bucket="sound", Key="changing.flac", Body=long_file.read_bytes()[::-1])
    with pytest.raises(UnavailableError, match="has changed while it was read"):
        recordings.read(segment(200, 5, "s3://sound/changing.flac"), "")
