"""When a run's state is written down, and when it goes back to what was written."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from launcher.ranks import Ranks, made_progress
from mtbi.engine import checkpoint
from mtbi.engine.agreement import Attempt, settle, share
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.engine import Engine
from mtbi.engine.lease import Lease, LeaseLostError
from mtbi.engine.metrics import Metrics
from mtbi.engine.progress import Progress
from mtbi.engine.remote import RemoteCopy
from mtbi.errors import UserError
from mtbi.recipe import Recipe


class Keeper:
    """All processes call its methods together; the first one writes."""

    def __init__(self, recipe: Recipe, ranks: Ranks, engine: Engine, metrics: Metrics, lease: Lease | None = None) -> None:
        self.recipe, self.ranks, self.engine, self.metrics, self.lease = recipe, ranks, engine, metrics, lease
        self.run_dir = Path(recipe.run_dir)
        place = recipe.train.copy_to
        self.copies = RemoteCopy(place, self.run_dir) if place and ranks.rank == 0 else None

    def save(self, progress: Progress, score: float | None = None, needed: bool = True) -> None:
        """Write a checkpoint. A disk that refuses costs this checkpoint; raises UserError where it is `needed`."""
        snapshot = self.engine.snapshot(progress.to_state(self.recipe, self.ranks.world))
        failed = torch.zeros(1, device=self.engine.device)
        lost: LeaseLostError | None = None
        try:
            if self.ranks.rank == 0:
                folder = checkpoint.save(self.run_dir, progress.step, snapshot, self.lease)
                if self.copies:
                    self.copies.push(folder, needed)
                checkpoint.keep(self.run_dir, self.recipe.train.keep_last, score)
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
                raise UserError(
                    f"{self.run_dir}: no checkpoint could be written; make room and start again. Older ones are whole."
                )

    def roll_back(self, progress: Progress, why: str) -> None:
        """Put the weights of the checkpoint that the first process chooses back; the data goes on.

        Raises UserError without one, or after too many times.
        """
        self.metrics.counts["rollbacks"] += 1

        def choose() -> tuple[Path, Snapshot] | None:
            newest = checkpoint.latest_valid(self.run_dir)
            return (newest, checkpoint.load(newest)) if newest else None

        whole, most = share(self.ranks, self.engine.device, choose), self.recipe.train.max_rollbacks
        if not whole or self.metrics.counts["rollbacks"] > most:
            raise UserError(
                f"step {progress.step}: {why}"
                + (f", after {most} returns to a checkpoint" if whole else ", before any checkpoint")
                + f". Lower train.learning_rate or look at the data. {self.run_dir / checkpoint.FOLDER} is from before."
            )
        folder, snapshot = whole
        self.engine.restore(snapshot)
        self.metrics.say(f"step {progress.step}: {why}; the weights are those of {folder.name} again, the data goes on")

    def close(self) -> None:
        """Wait for the last copy, and let another run write."""
        if self.copies:
            self.copies.close()
        if self.lease:
            self.lease.release()
