"""A copy of a run's checkpoints and TensorBoard files on object storage, made in the background.

`latest.json` is uploaded after a checkpoint's files, so the checkpoint that it names is complete. A run whose folder has no
checkpoint, or an older one, downloads that checkpoint at its start: on a new cluster, for example.
"""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from mtbi import object_store
from mtbi.engine import checkpoint
from mtbi.errors import UnavailableError, UserError

log = logging.getLogger(__name__)
LATEST = "latest.json"
TENSORBOARD = "tensorboard"


class RemoteCopy:
    """Uploads one checkpoint at a time to `address`. Training never waits for an upload.

    A failed upload is logged. The next checkpoint is uploaded all the same.
    """

    def __init__(self, address: str, run_dir: Path) -> None:
        self.address, self.run_dir = address.rstrip("/"), run_dir
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mtbi-upload")
        self._last: Future[None] | None = None
        self.failed = ""  #: the checkpoint whose upload failed, until a later upload succeeds

    def push(self, folder: Path, needed: bool = False) -> None:
        """Start to upload a checkpoint. While another upload runs it is skipped, or queued if it is `needed`."""
        if needed or self._last is None or self._last.done():
            names = sorted(path.name for path in folder.iterdir())
            linked = folder.with_name(f".{folder.name}.upload")  # hard links: the checkpoint may be deleted meanwhile
            shutil.rmtree(linked, ignore_errors=True)
            shutil.copytree(folder, linked, copy_function=lambda source, target: Path(target).hardlink_to(source))
            self._last = self._pool.submit(self._upload, linked, folder.name, names)

    def _upload(self, linked: Path, name: str, names: list[str]) -> None:
        try:
            object_store.upload(linked, names, f"{self.address}/{checkpoint.FOLDER}/{name}")
            (linked / LATEST).write_text(json.dumps({"checkpoint": name, "files": names}) + "\n", encoding="utf-8")
            object_store.upload(linked, [LATEST], self.address)
            events = self.run_dir / TENSORBOARD
            if events.is_dir():
                object_store.upload(events, sorted(path.name for path in events.iterdir()), f"{self.address}/{TENSORBOARD}")
            self.failed = ""
        except Exception as error:
            self.failed = name
            log.warning("%s is not copied: %s", name, error)
        finally:
            shutil.rmtree(linked, ignore_errors=True)

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for the upload that runs; returns whether none runs any more."""
        return self._last is None or not wait([self._last], timeout=seconds).not_done

    def close(self) -> None:
        """Wait for the upload that runs, however long it takes."""
        self._pool.shutdown(wait=True)


def pull(address: str, run_dir: Path) -> Path | None:
    """Download the newest copied checkpoint, unless the run's folder has the same or a later one that is whole.

    Returns its folder, or None if nothing was downloaded. Where the store does not answer, UnavailableError is raised only
    if the run's folder has no checkpoint. Raises UserError if the store refuses access, or `latest.json` is damaged.
    """
    own = checkpoint.latest_valid(run_dir)
    address = address.rstrip("/")
    try:
        latest = read_latest(address, run_dir)
    except UnavailableError as error:
        if own is None:
            raise
        log.warning("%s does not answer, so the run goes on from its own %s: %s", address, own.name, error)
        return None
    if latest is None or (own and checkpoint.step_of(own) >= checkpoint.step_of(latest)):
        return None
    partial = latest.with_name(f".{latest.name}.partial")
    for name in checkpoint.FILES:
        object_store.fetch(f"{address}/{checkpoint.FOLDER}/{latest.name}/{name}", partial / name)
    shutil.rmtree(latest, ignore_errors=True)  # a damaged one
    return partial.replace(latest)


def read_latest(address: str, run_dir: Path) -> Path | None:
    """The folder in `run_dir` of the checkpoint that `latest.json` names; None if there is no `latest.json`."""
    downloaded = run_dir / checkpoint.FOLDER / f".{LATEST}"
    try:
        object_store.fetch(f"{address}/{LATEST}", downloaded)
    except object_store.NotFoundError:
        return None
    try:
        record = json.loads(downloaded.read_text(encoding="utf-8"))
        name, names = record["checkpoint"], record["files"]
        folder = checkpoint.folder_of(run_dir, int(name.removeprefix("step-")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{address}/{LATEST}: damaged ({error!r}); delete it to start afresh") from error
    if set(names) != set(checkpoint.FILES) or folder.name != name:
        raise UserError(f"{address}/{LATEST}: names no checkpoint ({name}, {names}); delete it to start afresh")
    downloaded.unlink()
    return folder
