"""When a run writes a checkpoint, what it records beside the tensors, and when it returns to an earlier checkpoint.

Training stops only while the tensors are copied to memory. A thread of the first process writes them to the disk meanwhile, as
`mtbi.engine.remote` copies them to object storage. Whatever ends or changes the run waits for both.

`mtbi.engine.checkpoint` is the format of one checkpoint, `mtbi.engine.remote` its copy on object storage.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from launcher.ranks import Ranks, made_progress
from mtbi import recipe as recipes
from mtbi.batches.plan import Position, Step
from mtbi.engine import checkpoint
from mtbi.engine.agreement import Attempt, settle, share
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.engine import Engine
from mtbi.engine.lease import Lease, LeaseLostError
from mtbi.engine.log import Metrics, new_counts
from mtbi.engine.remote import RemoteCopy
from mtbi.errors import UserError
from mtbi.recipe import DataConfig, Recipe

COPY_POLL_SECONDS = 1.0  #: between two checks whether the last copy is complete
#: `data.max_unreadable_share` counts as a share of at least this many utterances, or of the whole corpus if it is smaller.
#: A single damaged shard near the start of a run then does not end it.
SHARE_UTTERANCES = 10_000


@dataclass
class Progress:
    """How many steps are done, where the next step's data begins, and what went wrong so far."""

    step: int = 0
    position: Position = field(default_factory=Position)  #: in the data, of the next step
    audio_seconds: float = 0.0  #: trained on so far, repetitions included
    data: dict[str, str] = field(default_factory=dict)  #: digests of the data that `position` refers to, by name
    evaluation: str = ""  #: digest of the evaluation's data
    utterances: int = 0  #: planned so far, with repetitions and with those that could not be read
    counts: dict[str, int] = field(default_factory=new_counts)
    guard: dict[str, Any] = field(default_factory=dict)  #: from `Guard.to_state`

    @classmethod
    def of(cls, snapshot: Snapshot | None) -> Progress:
        """The progress that a checkpoint records; a new run's without one.

        Earlier versions wrote fewer fields. A field that is missing counts as zero.
        """
        if snapshot is None:
            return cls()
        state = snapshot.state
        return cls(
            int(state["step"]),
            Position.from_json(state["position"]),
            float(state["audio_seconds"]),
            utterances=int(state.get("utterances", 0)),
            counts=new_counts() | {name: int(count) for name, count in state.get("counts", {}).items()},
            guard=state.get("guard", {}),
        )

    @property
    def bad_steps(self) -> int:
        """How many steps in a row were bad up to now. Above 0, the weights are not worth returning to."""
        return int(self.guard.get("bad_steps", 0))

    def advance(self, step: Step, unreadable: int) -> None:
        """Count a finished step, of which `unreadable` utterances could not be read."""
        self.step += 1
        self.position = step.next_position
        self.audio_seconds += step.audio_seconds
        self.utterances += sum(len(row.groups) for row in step.rows)
        self.counts["unreadable_utterances"] += unreadable

    def too_many_unreadable(self, data: DataConfig, corpus_utterances: int) -> str:
        """The message that ends the run where more utterances are unreadable than allowed; empty otherwise."""
        unreadable = self.counts["unreadable_utterances"]
        allowed = data.max_unreadable_share * max(self.utterances, min(corpus_utterances, SHARE_UTTERANCES))
        if unreadable <= allowed:
            return ""
        return (
            f"data.shards: {unreadable} of {self.utterances} utterances so far are lost or damaged, more than "
            f"data.max_unreadable_share={data.max_unreadable_share:g} allows. The warnings above name them. Copy the shards "
            "again, make them again, or allow a larger share."
        )

    def to_state(self, recipe: Recipe, world: int) -> dict[str, Any]:
        """The JSON that `of` reads, with the recipe and the number of processes."""
        return {
            "step": self.step,
            "position": self.position.to_json(),
            "world": world,
            "recipe": recipes.to_dict(recipe),
            "audio_seconds": self.audio_seconds,
            "data": self.data,
            "evaluation": self.evaluation,
            "numpy": np.__version__,
            "utterances": self.utterances,
            "counts": self.counts,
            "guard": self.guard,
        }


@dataclass
class Written:
    """The write of a checkpoint, on the first process."""

    step: int
    result: Future[None] | None  #: None on the other processes


class Checkpointer:
    """Writes checkpoints and restores them. All processes call each method together; the first process writes.

    `report_activity` receives what the process is doing, for the watchdog.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        engine: Engine,
        metrics: Metrics,
        lease: Lease | None = None,
        report_activity: Callable[[str], None] = lambda activity: None,
    ) -> None:
        self.recipe, self.ranks, self.engine, self.metrics = recipe, ranks, engine, metrics
        self.lease, self.report_activity = lease, report_activity
        self.run_dir = Path(recipe.run_dir)
        address = recipe.train.copy_to
        self.copies = RemoteCopy(address, self.run_dir) if address and ranks.rank == 0 else None
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="mtbi-checkpoint")
        self.written: Written | None = None  #: the last checkpoint, until all processes know that it is complete

    def save(self, progress: Progress, score: float | None = None, needed: bool = True) -> None:
        """Begin to write a checkpoint. `score` is the evaluation's; it is ignored after a bad step.

        If it is `needed`, it is complete on return. A checkpoint that the disk refuses is skipped and counted, at the latest
        when the next one is due. Raises UserError if it is `needed`.
        """
        self.report_activity("writing a checkpoint")
        self.complete()
        state = copy.deepcopy(progress.to_state(self.recipe, self.ranks.world))  # its counts change while it is written
        first = self.ranks.rank == 0
        snapshot = self.engine.snapshot(state, keep=first)
        score = None if progress.bad_steps else score
        write = self.thread.submit(self._write, progress.step, snapshot, score, needed) if first else None
        self.written = Written(progress.step, write)
        if needed:
            self.complete(needed)

    def _write(self, step: int, snapshot: Snapshot, score: float | None, needed: bool) -> None:
        """Write a checkpoint, begin its copy, and delete older ones. Raises OSError and LeaseLostError."""
        folder = checkpoint.save(self.run_dir, step, snapshot, self.lease)
        if self.copies:
            self.copies.push(folder, needed)
        checkpoint.keep(self.run_dir, self.recipe.train.keep_last, score)
        made_progress()

    def complete(self, needed: bool = False) -> None:
        """Wait until the last checkpoint is on the disk. Raises as `save` does."""
        written, self.written = self.written, None
        if written is None:
            return
        failed = torch.zeros(1, device=self.engine.device)
        lease_lost: LeaseLostError | None = None
        try:
            if written.result:
                written.result.result()
        except LeaseLostError as error:
            lease_lost = error
        except OSError as error:
            failed += 1
            self.metrics.write_line(f"step {written.step}: the checkpoint could not be written: {error}")
        settle(self.ranks, Attempt(error=lease_lost))
        dist.all_reduce(failed)
        if failed:
            self.metrics.counts["failed_checkpoints"] += 1
            if needed:
                self.close()
                raise UserError(
                    f"{self.run_dir}: no checkpoint could be written; make room and start again. Older ones are whole."
                )

    def roll_back(self, progress: Progress, reason: str) -> None:
        """Restore the weights of the newest good checkpoint, which the first process chooses. The data goes on.

        Raises UserError if there is no such checkpoint, or after more than `train.max_rollbacks` returns.
        """
        self.report_activity("waiting for a checkpoint")
        self.complete()
        self.metrics.counts["rollbacks"] += 1

        def choose() -> tuple[Path, Snapshot] | None:
            good = checkpoint.latest_good(self.run_dir)
            return (good, checkpoint.load(good)) if good else None

        chosen, most = share(self.ranks, self.engine.device, choose), self.recipe.train.max_rollbacks
        if not chosen or self.metrics.counts["rollbacks"] > most:
            self.close()
            raise UserError(
                f"step {progress.step}: {reason}"
                + (f", after {most} returns to a checkpoint" if chosen else ", before any checkpoint")
                + f". Lower train.learning_rate or look at the data. {self.run_dir / checkpoint.FOLDER} is from before."
            )
        folder, snapshot = chosen
        self.engine.restore(snapshot)
        self.metrics.write_line(f"step {progress.step}: {reason}; weights restored from {folder.name}, the data goes on")

    def end(self, progress: Progress, error: Exception) -> NoReturn:
        """End the run after a failure: write a checkpoint, wait for its copy, and raise `error`.

        All processes call this, each with its own error.
        """
        with contextlib.suppress(UserError):  # a full disk is already logged, and is not why the run ends
            self.save(progress)
        self.close()
        raise error

    def copy_again(self) -> None:
        """Copy the newest checkpoint again. The last copy may have failed in a run that has no steps left."""
        if self.copies and (newest := checkpoint.latest_valid(self.run_dir)):
            self.copies.push(newest, needed=True)

    def close(self) -> str:
        """Wait for the last checkpoint and its copy, then give up the lease; returns the name of one not copied, or "".

        All processes return at the same time, because a launcher ends the others once one process has ended.
        """
        self.complete()
        while True:
            self.report_activity("waiting for the last copy")
            complete = self.copies is None or self.copies.wait(COPY_POLL_SECONDS)
            status = [complete, self.copies.failed if self.copies else ""]
            dist.broadcast_object_list(status, src=0, device=self.engine.device)
            if status[0]:
                if self.lease:
                    self.lease.release()
                return str(status[1])
