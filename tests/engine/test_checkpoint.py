from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mtbi.engine import checkpoint, remote
from mtbi.engine.checkpoint import Snapshot


def make(step: int) -> Snapshot:
    weights = {"adapter.weight": torch.full((2, 3), float(step))}
    moments = {"adapter.weight.exp_avg": torch.ones(2, 3), "adapter.weight.exp_avg_sq": torch.ones(2, 3)}
    return Snapshot(weights, moments, {"step": step})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 200, make(200))
    assert folder.name == "step-00000200"
    loaded = checkpoint.load(folder)
    torch.testing.assert_close(loaded.trainable, make(200).trainable, rtol=0, atol=0)
    torch.testing.assert_close(loaded.moments, make(200).moments, rtol=0, atol=0)
    assert loaded.state == {"step": 200}
    assert sorted(path.name for path in folder.iterdir()) == [
        "checksums.json", "optimizer.safetensors", "state.json", "trainable.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "state"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in (100, 200):
        checkpoint.save(tmp_path, step, make(step))
    newest = checkpoint.folder_of(tmp_path, 200)
    weights = newest / checkpoint.TRAINABLE
    data = weights.read_bytes()
    if damage == "truncate":
        weights.write_bytes(data[:-4])
    elif damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "delete":
        weights.unlink()
    else:
        (newest / checkpoint.STATE).write_text(json.dumps({"step": 300}))
    assert checkpoint.latest_valid(tmp_path) == checkpoint.folder_of(tmp_path, 100)
    assert "step-00000200: not used" in caplog.text


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 100, make(100))
    checkpoint.save(tmp_path, 200, make(200)).rename(tmp_path / checkpoint.FOLDER / ".step-00000200.partial")
    assert checkpoint.latest_valid(tmp_path) == checkpoint.folder_of(tmp_path, 100)
    checkpoint.save(tmp_path, 200, make(200))
    assert checkpoint.latest_valid(tmp_path) == checkpoint.folder_of(tmp_path, 200)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, score in ((1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, 0.8)):
        checkpoint.save(tmp_path, step, make(step))
        checkpoint.keep(tmp_path, 2, score)
    assert [path.name for path in checkpoint.all_of(tmp_path)] == ["step-00000002", "step-00000004", "step-00000005"]
    assert checkpoint.best(tmp_path) == checkpoint.folder_of(tmp_path, 2)


def test_an_empty_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest_valid(tmp_path) is None
    assert checkpoint.best(tmp_path) is None


def test_what_follows_bad_steps_is_neither_gone_back_to_nor_deleted_for(tmp_path: Path) -> None:
    for step, bad_steps in ((1, 0), (2, 1), (3, 2), (4, 3)):
        snapshot = make(step)
        snapshot.state["guard"] = {"bad_steps": bad_steps}
        checkpoint.save(tmp_path, step, snapshot)
        checkpoint.keep(tmp_path, 2, None)
    assert [path.name for path in checkpoint.all_of(tmp_path)] == ["step-00000001", "step-00000003", "step-00000004"]
    assert checkpoint.latest_valid(tmp_path) == checkpoint.folder_of(tmp_path, 4)
    assert checkpoint.latest_good(tmp_path) == checkpoint.folder_of(tmp_path, 1)
    checkpoint.save(tmp_path, 5, make(5))  # as older versions wrote them
    assert checkpoint.latest_good(tmp_path) == checkpoint.folder_of(tmp_path, 5)


def copied(tmp_path: Path, step: int) -> str:
    """A copy of a run, as the upload leaves it, in a folder."""
    there = tmp_path / "copy"
    checkpoint.save(there, step, make(step))
    (there / remote.LATEST).write_text(
        json.dumps({"checkpoint": checkpoint.folder_of(there, step).name, "files": list(checkpoint.FILES)})
    )
    return str(there)


@pytest.mark.parametrize(
    ("own", "damaged", "fetched"),
    [((), (), True), ((4,), (), True), ((8,), (), False), ((4, 8), (8,), True), ((9,), (), False)],
)
def test_the_later_of_folder_and_copy_is_taken(
    tmp_path: Path, own: tuple[int, ...], damaged: tuple[int, ...], fetched: bool
) -> None:
    address = copied(tmp_path, 8)
    for step in own:
        checkpoint.save(tmp_path / "run", step, make(step))
    for step in damaged:
        (checkpoint.folder_of(tmp_path / "run", step) / checkpoint.OPTIMIZER).write_bytes(b"x")
    pulled = remote.pull(address, tmp_path / "run")
    assert pulled == (checkpoint.folder_of(tmp_path / "run", 8) if fetched else None)
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", max({*own, 8}))


def test_a_disk_that_fails_for_a_moment_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (4, 8):
        checkpoint.save(tmp_path, step, make(step))
    real, failures = checkpoint.checksum, [OSError(116, "Stale file handle")]

    def once(path: Path) -> str:
        if failures:
            raise failures.pop()
        return real(path)

    monkeypatch.setattr(checkpoint, "checksum", once)
    assert checkpoint.newest(tmp_path) == checkpoint.folder_of(tmp_path, 8)
