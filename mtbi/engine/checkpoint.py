"""The format of a checkpoint, which does not depend on the number of processes or the ZeRO stage.

A checkpoint is a folder such as `step-00000200`. It holds the trainable parameters and Adam's moments in float32, the run's
state as JSON, and the checksums of the three. It is written under another name, flushed to the disk and renamed, so it appears
whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtbi import files
from mtbi.engine import trained
from mtbi.engine.lease import Lease
from mtbi.errors import UserError

log = logging.getLogger(__name__)

TRAINABLE, OPTIMIZER, STATE, CHECKSUMS = "trainable.safetensors", "optimizer.safetensors", "state.json", "checksums.json"
FILES = (TRAINABLE, OPTIMIZER, STATE, CHECKSUMS)
FOLDER = "checkpoints"
BEST = "best.json"
READ_ATTEMPTS = 3  #: if the disk reports an error


@dataclass
class Snapshot:
    """The content of a checkpoint."""

    trainable: dict[str, Tensor]  #: parameters by name, float32
    moments: dict[str, Tensor]  #: `NAME.exp_avg` and `NAME.exp_avg_sq`, float32
    state: dict[str, Any]  #: the run's progress (`Progress.to_state`), the optimizer's steps, the precision


def folder_of(run_dir: Path | str, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return Path(run_dir) / FOLDER / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    files.write_text(path, json.dumps(content, indent=1) + "\n")


def save(run_dir: Path | str, step: int, snapshot: Snapshot, lease: Lease | None = None) -> Path:
    """Write the checkpoint of a step; returns its folder.

    Raises OSError if the disk is full or fails; older checkpoints stay whole. Raises LeaseLostError if another process has
    become the folder's writer.
    """
    if lease:
        lease.verify()
    folder = folder_of(run_dir, step)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(snapshot.trainable, partial / TRAINABLE)
        save_file(snapshot.moments, partial / OPTIMIZER)
    except SafetensorError as error:
        raise OSError(f"{partial}: {error}") from error
    (partial / STATE).write_text(json.dumps(snapshot.state, indent=1) + "\n", encoding="utf-8")
    sums = {name: checksum(partial / name) for name in (TRAINABLE, OPTIMIZER, STATE)}
    (partial / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    for path in partial.iterdir():
        files.flush(path)
    if lease:
        lease.verify()  # writing may have taken minutes
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    files.flush(folder.parent)
    return folder


def find_damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it is whole."""
    for attempt in range(READ_ATTEMPTS):
        try:
            sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
            for name in (TRAINABLE, OPTIMIZER, STATE):
                if checksum(folder / name) != sums[name]:
                    return f"{name} is damaged"
            return None
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            return f"it is incomplete ({error})"
        except OSError as error:  # of a network file system, which may recover in a moment
            damage = f"it cannot be read ({error})"
            time.sleep(attempt)
    return damage


def all_of(run_dir: Path | str) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((Path(run_dir) / FOLDER).glob("step-*"))


def latest_valid(run_dir: Path | str) -> Path | None:
    """The newest checkpoint that is whole. Damaged ones are skipped with a warning."""
    return next(whole_checkpoints(run_dir), None)


def whole_checkpoints(run_dir: Path | str) -> Iterator[Path]:
    """The checkpoints that are whole, newest first. Damaged ones are skipped with a warning."""
    for folder in reversed(all_of(run_dir)):
        if (damage := find_damage(folder)) is None:
            yield folder
        else:
            log.warning("%s: not used, %s; going back to the one before", folder, damage)


def newest(run_dir: Path | str) -> Path | None:
    """The newest checkpoint that is whole, to go on from; None if there are no checkpoints.

    Raises UserError if there are checkpoints but none is whole, because training would begin again at step 1.
    """
    folder = latest_valid(run_dir)
    if folder is None and (folders := all_of(run_dir)):
        raise UserError(
            f"{folders[0].parent}: none of its {len(folders)} checkpoints can be used ({folders[-1].name}: "
            f"{find_damage(folders[-1])}). Put a whole one back, or delete them to start afresh."
        )
    return folder


def after_bad_steps(folder: Path) -> bool:
    """Whether a checkpoint was written after a bad step (`mtbi.engine.guard`), or its state cannot be read.

    A restarted run goes on from such a checkpoint. A roll-back never returns to it, and it is never the best.
    """
    try:
        return bool(load_state(folder).get("guard", {}).get("bad_steps", 0))
    except (OSError, ValueError, AttributeError):
        return True


def latest_good(run_dir: Path | str) -> Path | None:
    """The newest checkpoint that is whole and does not follow a bad step. Roll-backs and finished runs use it."""
    return next((folder for folder in whole_checkpoints(run_dir) if not after_bad_steps(folder)), None)


def load(folder: Path) -> Snapshot:
    """Read a checkpoint that is whole."""
    return Snapshot(load_file(folder / TRAINABLE), load_file(folder / OPTIMIZER), load_state(folder))


def load_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state beside its tensors: step, position in the data, recipe and more."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def load_trainable(folder: Path | str) -> dict[str, Tensor]:
    """A checkpoint's trainable parameters by name, float32."""
    return load_file(Path(folder) / TRAINABLE)


def best(run_dir: Path | str) -> Path | None:
    """The checkpoint with the best evaluation so far; None if there is none, or it is damaged."""
    record = read_best(run_dir)
    folder = folder_of(run_dir, record["step"]) if record else None
    return folder if folder and find_damage(folder) is None else None


def read_best(run_dir: Path | str) -> dict[str, Any] | None:
    """Step and score of the best checkpoint; None without a record. A damaged record is skipped with a warning."""
    path = Path(run_dir) / FOLDER / BEST
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"step": int(record["step"]), "score": float(record["score"])}
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: not used, it is damaged (%s)", path, error)
        return None


def keep(run_dir: Path | str, last: int, score: float | None) -> None:
    """Record the newest checkpoint as the best if its score is the highest, then delete old checkpoints.

    These stay: the `last` newest, the best, and the newest that does not follow a bad step.
    """
    folders = all_of(run_dir)
    record = read_best(run_dir)
    if score is not None and (record is None or score >= record["score"]):
        record = {"step": step_of(folders[-1]), "score": score}
        write_json(Path(run_dir) / FOLDER / BEST, record)
    good = [folder for folder in folders if not after_bad_steps(folder)]
    kept = {*folders[-last:], *good[-1:], *([folder_of(run_dir, record["step"])] if record else [])}
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder)


def parameter_difference(saved: dict[str, Tensor], model: torch.nn.Module) -> str:
    """How saved trainable parameters differ from the model's in parts, names and shapes; empty if they fit."""
    shapes = ((name, getattr(value, "ds_shape", value.shape), value) for name, value in model.named_parameters())
    wanted = {(name, tuple(shape)) for name, shape, value in shapes if value.requires_grad}  # ds_shape: split by ZeRO-3
    differing = sorted(wanted ^ {(name, tuple(value.shape)) for name, value in saved.items()})
    if not differing:
        return ""
    name, shape = differing[0]
    parts = trained.difference(saved, (name for name, _ in wanted))
    return f"{parts}{parts and ': '}{len(differing)} trainable parameters differ, the first is {name} {shape}"
