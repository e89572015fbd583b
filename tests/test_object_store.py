"""Shards on a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from servers.faulty_proxy import faulty_proxy
from servers.swift import free_ports, swift_server

from mtbi import object_store
from mtbi.answers.store import AnswerStore
from mtbi.corpus.manifest import ManifestSlice, Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards

pytestmark = pytest.mark.slow
PLACE = "s3://speech/digits"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat
) -> Iterator[dict[str, str]]:
    """The environment of a running server that holds the corpus as shards."""
    with pytest.MonkeyPatch.context() as patch, swift_server(tmp_path_factory.mktemp("swift")) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=environment["S3_ENDPOINT_URL"]).create_bucket(Bucket="speech")
        write_shards(corpus[1], corpus[0], AnswerStore(answers), chat, PLACE, shard_bytes=1 << 19)
        yield environment


def test_remote_shards_are_the_local_ones(server: dict[str, str], shard_folder: Path, tmp_path: Path) -> None:
    remote, local = Shards(PLACE, str(tmp_path)), Shards(str(shard_folder))
    for table in ("utterances", "branches", "words"):
        np.testing.assert_array_equal(getattr(remote.index, table), getattr(local.index, table))
    for number in (0, 17, 59):
        np.testing.assert_array_equal(remote[number].waveform, local[number].waveform)
        assert [b.answer for b in remote[number].behaviours] == [b.answer for b in local[number].behaviours]


def test_two_processes_share_an_empty_cache(server: dict[str, str], tmp_path: Path) -> None:
    script = f"from mtbi.shards.read import Shards; s = Shards({PLACE!r}, {str(tmp_path)!r})\n"
    script += "print(sum(len(s[n].waveform) for n in range(60)))"
    readers = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [reader.communicate(timeout=120)[0] for reader in readers]
    assert outputs[0] == outputs[1]
    assert int(outputs[0]) > 60 * 8000


def test_processes_with_one_cache_fetch_each_object_once(
    server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for processes in (1, 4):
        with faulty_proxy(server["S3_ENDPOINT_URL"]) as (address, requests):
            monkeypatch.setenv("S3_ENDPOINT_URL", address)
            script = f"from mtbi.shards.read import Shards; s = Shards({PLACE!r}, {str(tmp_path / str(processes))!r})\n"
            script += "print(sum(len(s[n].waveform) for n in range(60)))"
            readers = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(processes)]
            assert len({reader.communicate(timeout=240)[0] for reader in readers}) == 1
            counts.append(requests.requests)
    assert counts[0] >= 8
    assert counts[1] == counts[0]


def test_a_process_that_holds_the_turn_and_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "TURN_SECONDS", 1.0)
    began = time.monotonic()
    with object_store.in_turn(tmp_path / "shard"), object_store.in_turn(tmp_path / "shard"):
        assert 1 <= time.monotonic() - began < 10
    began = time.monotonic()
    with object_store.in_turn(tmp_path / "shard"), object_store.in_turn(tmp_path / "other"):
        assert time.monotonic() - began < 1


def test_a_damaged_copy_is_fetched_again(server: dict[str, str], tmp_path: Path) -> None:
    first = Shards(PLACE, str(tmp_path))[0]
    (copy,) = tmp_path.rglob("shard.00000.mds")
    copy.write_bytes(copy.read_bytes()[:-10])
    np.testing.assert_array_equal(Shards(PLACE, str(tmp_path))[0].waveform, first.waveform)


def test_the_cache_stays_below_its_limit(server: dict[str, str], tmp_path: Path) -> None:
    limited = Shards(PLACE, str(tmp_path), cache_limit_gb=1.2e-3)
    for number in [*range(60), 0, 30]:
        assert len(limited[number].waveform) > 1000
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.mds")) < 1.2e6 + (1 << 19)


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        ("s3://nobody/digits", {}, ("s3://nobody/digits", "Check the address")),
        ("s3://speech/nothing", {}, ("s3://speech/nothing", "not found")),
        (PLACE, {"AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}, (PLACE, "refuses access", "AWS_SECRET_ACCESS_KEY")),
        (PLACE, {"S3_ENDPOINT_URL": "closed"}, (PLACE, "2 attempts failed at http://127.0.0.1")),
    ],
)
def test_wrong_places_and_credentials_are_one_message(
    server: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    changes: dict[str, str],
    words: tuple[str, ...],
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}" if value == "closed" else value)
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        Shards(place, str(tmp_path), retries=2)
    assert time.monotonic() - began < 30
    assert all(word in str(caught.value) for word in words), caught.value
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    assert not list(tmp_path.rglob("*.mds"))


@pytest.mark.parametrize("fault", ["500", "503", "dropped", "truncated", "slow"])
def test_a_store_that_fails_for_a_while_is_asked_again(
    server: dict[str, str], shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with faulty_proxy(server["S3_ENDPOINT_URL"]) as (address, faults):
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own attempts would hide the faults
        faults.waiting = [fault]  # the index
        remote = Shards(PLACE, str(tmp_path), retries=3)
        faults.waiting = [fault]  # a shard
        wave = remote[17].waveform
        assert not faults.waiting
        np.testing.assert_array_equal(wave, Shards(str(shard_folder))[17].waveform)
        assert not [path for path in tmp_path.rglob(".*") if path.is_file()]  # no half copies


def test_a_store_that_goes_on_failing_ends_with_a_message(
    server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(server["S3_ENDPOINT_URL"]) as (address, faults):
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        remote = Shards(PLACE, str(tmp_path), retries=2)
        faults.waiting = ["503"] * 100
        with pytest.raises(UserError, match=rf"{PLACE}/shard.*: 2 attempts failed at {address}.*503"):
            remote[17]
        assert not list(tmp_path.rglob("*.mds"))


def test_expired_credentials_are_told_at_once(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(server["S3_ENDPOINT_URL"]) as (address, faults):
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        remote = Shards(PLACE, str(tmp_path))
        faults.waiting = ["expired"] * 100
        with pytest.raises(UserError, match=rf"{PLACE}/shard.*refuses access.*no token has expired"):
            remote[17]
        assert len(faults.waiting) > 90


def test_shards_are_not_written_over_others(
    server: dict[str, str], corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat
) -> None:
    with pytest.raises(UserError, match="holds shards already"):
        write_shards(corpus[1][:2], corpus[0], AnswerStore(answers), chat, PLACE)


def test_writing_to_a_bucket_that_is_not_there(
    server: dict[str, str],
    corpus: tuple[Path, list[Utterance]],
    answers: Path,
    chat: ChatFormat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"s3://nobody/digits"):
        write_shards(corpus[1][:2], corpus[0], AnswerStore(answers), chat, "s3://nobody/digits")
    assert not list(tmp_path.glob("mtbi-shards-*"))


def test_parts_are_uploaded_as_they_are_written_and_joined(
    server: dict[str, str],
    corpus: tuple[Path, list[Utterance]],
    answers: Path,
    chat: ChatFormat,
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, most = "s3://speech/parts", 0
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    upload = object_store.upload

    def watched(folder: Path, names: list[str], address: str, attempts: int = 2) -> None:
        nonlocal most
        most = max(most, len(list(folder.glob("*.mds"))))
        upload(folder, names, address, attempts)

    monkeypatch.setattr(object_store, "upload", watched)
    with faulty_proxy(server["S3_ENDPOINT_URL"]) as (address, faults):
        monkeypatch.setenv("S3_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        for part in reversed(ManifestSlice(1, 2).siblings()):
            store, some = AnswerStore(answers, part.take(corpus[1])), part.take(corpus[1])
            for _ in range(2):  # the second time there is nothing to do
                assert write_shards(some, corpus[0], store, chat, place, shard_bytes=1 << 17, part=part, made_from="m") == 30
                faults.waiting = ["503"]
    monkeypatch.setenv("S3_ENDPOINT_URL", server["S3_ENDPOINT_URL"])
    assert most <= 3  # one is uploaded, one is full, and the last is closed
    remote, local = Shards(place, str(tmp_path / "cache")), Shards(str(shard_folder))
    for table in ("utterances", "branches", "words"):
        np.testing.assert_array_equal(getattr(remote.index, table), getattr(local.index, table))
    assert len(remote.index.shard_sizes) > 12
    for number in (0, 29, 30, 59):
        assert remote.columns(number) == local.columns(number)
    assert (tmp_path / "cache/s3/speech/parts/part-2-of-2/shard.00000.mds").exists()
    with pytest.raises(UserError, match="parts: holds other shards already"):
        write_shards(corpus[1][30:], corpus[0], AnswerStore(answers), chat, place, part=ManifestSlice(2, 2), made_from="n")
