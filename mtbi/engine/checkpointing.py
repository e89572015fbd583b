"""When a run's state is written down, and when it goes back to what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from launcher.ranks import Ranks, made_progress
from mtbi.engine import checkpoint
from mtbi.engine.agreement import Attempt, settle, share
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.engine import Engine
from mtbi.engine.lease import Lease, LeaseLostError
from mtbi.engine.log import Metrics
from mtbi.engine.progress import Progress
from mtbi.engine.remote import RemoteCopy
from mtbi.errors import UserError
from mtbi.recipe import Recipe

COPY_PAUSE_SECONDS = 1.0  # between two looks at the last copy


class Keeper:
    """All processes call its methods together; the first one writes. `doing` is told what they are at, for a watchdog."""

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        engine: Engine,
        metrics: Metrics,
        lease: Lease | None = None,
        doing: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.recipe, self.ranks, self.engine, self.metrics = recipe, ranks, engine, metrics
        self.lease, self.doing = lease, doing
        self.run_dir = Path(recipe.run_dir)
        place = recipe.train.copy_to
        self.copies = RemoteCopy(place, self.run_dir) if place and ranks.rank == 0 else None

    def save(self, progress: Progress, score: float | None = None, needed: bool = True) -> None:
        """Write a checkpoint. A disk that refuses costs this checkpoint; raises UserError where it is `needed`.

        After a bad step, `score` does not count: such weights are not the best ones.
        """
        self.doing("writing a checkpoint")
        snapshot = self.engine.snapshot(progress.to_state(self.recipe, self.ranks.world))
        failed = torch.zeros(1, device=self.engine.device)
        lost: LeaseLostError | None = None
        try:
            if self.ranks.rank == 0:
                folder = checkpoint.save(self.run_dir, progress.step, snapshot, self.lease)
                if self.copies:
                    self.copies.push(folder, needed)
                checkpoint.keep(self.run_dir, self.recipe.train.keep_last, None if progress.bad_steps else score)
                made_progress()
        except LeaseLostError as error:
            lost = error
        except OSError as error:
            failed += 1
            self.metrics.say(f"step {progress.step}: the checkpoint could not be written: {error}")
        settle(self.ranks, Attempt(error=lost))
        dist.all_reduce(failed)
        if failed:
            self.metrics.counts["failed_checkpoints"] += 1
            if needed:
                self.close()
                raise UserError(
                    f"{self.run_dir}: no checkpoint could be written; make room and start again. Older ones are whole."
                )

    def roll_back(self, progress: Progress, why: str) -> None:
        """Put the weights of the newest good checkpoint back, which the first process chooses; the data goes on.

        Raises UserError without one, or after too many times.
        """
        self.metrics.counts["rollbacks"] += 1

        def choose() -> tuple[Path, Snapshot] | None:
            good = checkpoint.latest_good(self.run_dir)
            return (good, checkpoint.load(good)) if good else None

        whole, most = share(self.ranks, self.engine.device, choose), self.recipe.train.max_rollbacks
        if not whole or self.metrics.counts["rollbacks"] > most:
            self.close()
            raise UserError(
                f"step {progress.step}: {why}"
                + (f", after {most} returns to a checkpoint" if whole else ", before any checkpoint")
                + f". Lower train.learning_rate or look at the data. {self.run_dir / checkpoint.FOLDER} is from before."
            )
        folder, snapshot = whole
        self.engine.restore(snapshot)
        self.metrics.say(f"step {progress.step}: {why}; the weights are those of {folder.name} again, the data goes on")

    def end(self, progress: Progress, error: Exception) -> NoReturn:
        """All processes have agreed to end, each with its own error: keep the state, wait for its copy, raise the error."""
        with contextlib.suppress(UserError):  # a disk that refuses has been told, and is not why the run ends
            self.save(progress)
        self.close()
        raise error

    def copy_again(self) -> None:
        """Copy the newest checkpoint once more: a run that has nothing left to do may have ended without it."""
        if self.copies and (newest := checkpoint.latest_valid(self.run_dir)):
            self.copies.push(newest, needed=True)

    def close(self) -> str:
        """Returns on all processes at the same time, once the last copy is made: a process that leaves ends the others.

        Another run may write into the folder then. Returns the name of a checkpoint whose copy failed, or nothing.
        """
        while True:
            self.doing("waiting for the last copy")
            finished = self.copies is None or self.copies.finished(COPY_PAUSE_SECONDS)
            told = [finished, self.copies.failed if self.copies else ""]
            dist.broadcast_object_list(told, src=0, device=self.engine.device)
            if told[0]:
                if self.lease:
                    self.lease.release()
                return str(told[1])
