"""A copy of a run's checkpoints and TensorBoard files on object storage, made in the background.

`latest.json` is written after a checkpoint's files, so it names a whole one. A run whose folder holds no checkpoint, or an
older one, on a new cluster or another node say, takes the newest from there.
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
    """Uploads one checkpoint at a time; training never waits for it. A failure is told and tried again with the next one."""

    def __init__(self, place: str, run_dir: Path) -> None:
        self.place, self.run_dir = place.rstrip("/"), run_dir
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mtbi-upload")
        self._last: Future[None] | None = None
        self.failed = ""  #: the checkpoint whose copy failed, until a later copy succeeds

    def push(self, folder: Path, needed: bool = False) -> None:
        """Start to copy a checkpoint, unless the one before is still on its way; a needed one waits for that."""
        if needed or self._last is None or self._last.done():
            names = sorted(path.name for path in folder.iterdir())
            held = folder.with_name(f".{folder.name}.upload")  # links, so that it may be deleted meanwhile
            shutil.rmtree(held, ignore_errors=True)
            shutil.copytree(folder, held, copy_function=lambda source, target: Path(target).hardlink_to(source))
            self._last = self._pool.submit(self._push, held, folder.name, names)

    def _push(self, held: Path, name: str, names: list[str]) -> None:
        try:
            object_store.upload(held, names, f"{self.place}/{checkpoint.FOLDER}/{name}")
            (held / LATEST).write_text(json.dumps({"checkpoint": name, "files": names}) + "\n", encoding="utf-8")
            object_store.upload(held, [LATEST], self.place)
            events = self.run_dir / TENSORBOARD
            if events.is_dir():
                object_store.upload(events, sorted(path.name for path in events.iterdir()), f"{self.place}/{TENSORBOARD}")
            self.failed = ""
        except Exception as error:
            self.failed = name
            log.warning("%s is not copied: %s", name, error)
        finally:
            shutil.rmtree(held, ignore_errors=True)

    def finished(self, seconds: float) -> bool:
        """Whether nothing is on its way any more; waits for it up to so many seconds."""
        return self._last is None or not wait([self._last], timeout=seconds).not_done

    def close(self) -> None:
        """Wait for what is on its way."""
        self._pool.shutdown(wait=True)


def pull(place: str, run_dir: Path) -> Path | None:
    """Fetch the newest copied checkpoint, unless the run's folder holds it or a later whole one; None where nothing is fetched.

    A store that does not answer matters only where the folder holds no checkpoint. Raises UserError where the store refuses,
    fails, or names files that are none of a checkpoint's.
    """
    own = checkpoint.latest_valid(run_dir)
    place = place.rstrip("/")
    note = run_dir / checkpoint.FOLDER / f".{LATEST}"
    try:
        object_store.fetch(f"{place}/{LATEST}", note)
    except object_store.NotFoundError:
        return None
    except UnavailableError as error:
        if own is None:
            raise
        log.warning("%s is not asked for a later checkpoint than %s: %s", place, own.name, error)
        return None
    try:
        record = json.loads(note.read_text(encoding="utf-8"))
        name, names = record["checkpoint"], record["files"]
        step = int(name.removeprefix("step-"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}/{LATEST}: damaged ({error!r}); delete it to start afresh") from error
    if set(names) != set(checkpoint.FILES) or checkpoint.folder_of(run_dir, step).name != name:
        raise UserError(f"{place}/{LATEST}: names no checkpoint ({name}, {names}); delete it to start afresh")
    note.unlink()
    if own and checkpoint.step_of(own) >= step:
        return None
    partial = run_dir / checkpoint.FOLDER / f".{name}.partial"
    for one in names:
        object_store.fetch(f"{place}/{checkpoint.FOLDER}/{name}/{one}", partial / one)
    folder = checkpoint.folder_of(run_dir, step)
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    return partial.replace(folder)
