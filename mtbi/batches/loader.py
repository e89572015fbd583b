"""This process's micro-batches of the plan. Threads fetch shards and decode audio before the step that needs them."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import torch

from mtbi.batches.augment import Augmentation
from mtbi.batches.batch import Batch, build
from mtbi.batches.plan import Plan, Position, Row, Step
from mtbi.batches.transfer import PackedBatch
from mtbi.errors import DamagedError
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance

log = logging.getLogger(__name__)

PLANNED_STEPS = 8  # steps planned ahead of the one whose batches are being made


def rows_of(rows: list[Row], rows_per_step: int, rank: int, world: int, rows_per_micro_batch: int) -> list[list[Row]]:
    """The rows r, r+W, … of a step for rank r of W, in micro-batches; empty rows where the step has too few.

    Every rank gets the same number of micro-batches.
    """
    each = -(-rows_per_step // world)
    mine = rows[rank::world]
    mine = mine + [Row()] * (each - len(mine))
    return [mine[start : start + rows_per_micro_batch] for start in range(0, each, rows_per_micro_batch)]


@dataclass
class LoadedStep:
    """One global step as this process sees it."""

    step: Step
    loader: Loader
    micro_batch_count: int  #: of this process, the same on every process; without those that are empty on all
    futures: list[Future[tuple[Batch, int]]] = field(default_factory=list)  #: batches, and utterances left out of each
    data_wait_seconds: float = 0.0  #: spent waiting for batches so far
    unreadable: int = 0  #: utterances left out of this process's micro-batches so far

    @property
    def position(self) -> Position:
        """Where this step is in the data."""
        return self.step.position

    @property
    def next_position(self) -> Position:
        """Where the run goes on after this step."""
        return self.step.next_position

    @property
    def weight_total(self) -> float:
        """The denominator of the loss: the same on every process."""
        return self.step.weight_total

    @property
    def used_share(self) -> float:
        """Share of the step's slots that hold tokens."""
        return self.step.used_share

    def first_row(self, part: int) -> int:
        """The number in the global step of the first row of this process's micro-batch `part`, as `rows_of` deals them out."""
        return self.loader.rank + part * self.loader.rows_per_micro_batch * self.loader.world

    @property
    def micro_batches(self) -> Iterator[Batch]:
        """This process's micro-batches; to be iterated once."""
        for index in range(self.micro_batch_count):
            began = time.perf_counter()
            self.loader.doing("waiting for data")
            while len(self.futures) <= index:
                self.loader.submit_next()
            batch = self._batch(index)
            self.loader.waiting -= 1
            self.loader.top_up()
            self.loader.doing("computing")
            self.data_wait_seconds += time.perf_counter() - began
            yield batch

    def _batch(self, index: int) -> Batch:
        """Micro-batch `index`. After a failure it is empty, and none is waited for: all processes end after the same step."""
        loader = self.loader
        if loader.failure is None:
            try:
                batch, left_out = self.futures[index].result()
                self.unreadable, loader.unreadable = self.unreadable + left_out, loader.unreadable + left_out
                return batch
            except Exception as error:
                loader.failure = error
        return build([Row()] * loader.rows_per_micro_batch, loader.shards.__getitem__, loader.plan)


class Loader:
    """Iterate for LoadedSteps from `position` on, without end. `close` it, or use it in a `with` statement.

    At most `prefetch` micro-batches are ready or being made. All processes make the same plan, so an error of the plan is
    raised in the iteration on all of them. A micro-batch that cannot be fetched or decoded is empty; `failure` is its error.
    With `skip_unreadable`, utterances that are lost or damaged for good (DamagedError) are left out and counted. A store that
    refuses access or does not answer is still a `failure`. `doing` is called with the current activity, for a watchdog.
    Only a loader for training has an `augmentation`. For a GPU as the `device`, the threads also pack the micro-batches for the
    way there (`mtbi.batches.transfer`).
    """

    def __init__(
        self,
        shards: Shards,
        plan: Plan,
        rank: int = 0,
        world: int = 1,
        rows_per_micro_batch: int = 1,
        workers: int = 2,
        prefetch: int = 4,
        position: Position | None = None,
        skip_unreadable: bool = False,
        doing: Callable[[str], None] = lambda activity: None,
        augmentation: Augmentation | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.shards, self.plan, self.rank, self.world = shards, plan, rank, world
        self.rows_per_micro_batch, self.prefetch = rows_per_micro_batch, max(1, prefetch)
        self.skip_unreadable, self.doing, self.augmentation = skip_unreadable, doing, augmentation
        self.unreadable = 0  #: utterances left out of the micro-batches that were handed out
        self.failure: Exception | None = None  #: why a micro-batch of the step that is being computed is empty
        self.waiting = 0  #: micro-batches submitted and not yet handed out
        self._gpu = device if device and device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="mtbi-decode", initializer=self._begin_thread)
        self._planned: queue.Queue[Step | Exception] = queue.Queue(maxsize=PLANNED_STEPS)
        self._stopped = threading.Event()
        self._planner = threading.Thread(target=self._plan_ahead, args=(position,), name="mtbi-plan", daemon=True)
        self._planner.start()
        self._loaded: deque[LoadedStep] = deque()
        self._parts: deque[tuple[LoadedStep, list[Row]]] = deque()  #: of planned steps, not yet given to the threads

    def _plan_ahead(self, position: Position | None) -> None:
        """Plan the next window in a thread while steps of this one are computed."""
        try:
            for step in self.plan.steps(position):
                self._put(step)
                if self._stopped.is_set():
                    return
        except Exception as error:
            self._put(error)

    def _put(self, item: Step | Exception) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._planned.put(item, timeout=0.2)
                break

    def _take_step(self) -> None:
        """Deal out the next planned step; waits for the planner."""
        step = self._planned.get()
        if isinstance(step, Exception):
            self._planned.put(step)  # the next call raises it again
            raise step
        rows_per_step = self.plan.config.rows_per_step
        parts = rows_of(step.rows, rows_per_step, self.rank, self.world, self.rows_per_micro_batch)
        parts = parts[: max(1, -(-len(step.rows) // (self.world * self.rows_per_micro_batch)))]
        loaded = LoadedStep(step, self, len(parts))
        self._loaded.append(loaded)
        self._parts.extend((loaded, rows) for rows in parts)

    def submit_next(self) -> None:
        """Give the next micro-batch to the threads."""
        if not self._parts:
            self._take_step()
        loaded, rows = self._parts.popleft()
        loaded.futures.append(self._pool.submit(self._build, rows))
        self.waiting += 1

    def _begin_thread(self) -> None:
        """Page-locked memory belongs to a GPU, and each thread has a current one: without this, the first of the machine."""
        if self._gpu:
            torch.cuda.set_device(self._gpu)

    def _build(self, rows: list[Row]) -> tuple[Batch, int]:
        """A micro-batch, and how many utterances are left out of it."""
        left_out = 0

        def read(utterance: int) -> StoredUtterance | None:
            nonlocal left_out
            try:
                return self.shards[utterance]
            except DamagedError as error:
                if not self.skip_unreadable:
                    raise
                left_out += 1
                log.warning("utterance %d left out: %s", utterance, error)
                return None

        batch = build(rows, read, self.plan, self.augmentation)
        return PackedBatch.of(batch) if self._gpu else batch, left_out

    def top_up(self) -> None:
        """Keep `prefetch` micro-batches in the making, as far as steps are planned: no finished batch waits for the planner."""
        while self.waiting < self.prefetch and (self._parts or not self._planned.empty()):
            self.submit_next()

    def __iter__(self) -> Iterator[LoadedStep]:
        while True:
            began = time.perf_counter()
            self.doing("waiting for data")
            while not self._loaded:
                self.submit_next()
            loaded = self._loaded.popleft()
            loaded.data_wait_seconds += time.perf_counter() - began
            yield loaded

    def close(self) -> None:
        """Stop the threads; batches in the making are dropped."""
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._planner.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
