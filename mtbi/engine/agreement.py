"""Makes sure that all processes of a run hold the same, and that all end with one message if one fails.

Every process computes its part of each step from the same recipe, plan and weights. If they differed, training would go wrong
without an error. So the processes compare digests before the first step. A process that cannot read something sends the reason
to the others.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.ranks import Ranks
from mtbi.engine.checkpoint import Snapshot
from mtbi.errors import UnavailableError, UserError

T = TypeVar("T")
Facts = dict[str, dict[str, Any]]  #: topic → name → value that can be written as JSON
SHOWN_CHARACTERS = 60  #: longer values are compared by their digest
SHOWN_GROUPS = 3  #: groups of processes with the same value that a message names
REMEDIES = {
    "recipe": "Start all processes with the same recipe and overrides.",
    "data": "All nodes must see the same shards in the same order. Delete old copies in data.cache_dir.",
    "evaluation": "All nodes must see the same data.eval_shards. Delete old copies in data.cache_dir.",
    "augmentation": "All nodes must see the same recordings in augment.noise and augment.rooms.",
    "models": "Give all nodes the same revision of the model: one folder, or one HF_HOME.",
    "software": "Use one environment on all nodes.",
    "checkpoint": "Start again; if it happens again, check the network with launcher/preflight.py.",
}


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """The result of a piece of work, or its error."""

    value: T | None = None
    error: Exception | None = None

    @property
    def reason(self) -> str | None:
        """The error as text; None without one."""
        if isinstance(self.error, OSError) and self.error.strerror:
            return f"{self.error.filename or 'a file'}: {self.error.strerror}"
        if self.error is None or isinstance(self.error, UserError):
            return str(self.error) if self.error else None
        return f"{type(self.error).__name__}: {self.error}"

    def get(self) -> T:
        """The value. Raises the error if there is one; an OSError becomes a UserError."""
        if isinstance(self.error, OSError):
            raise UserError(f"{self.reason}") from self.error
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def attempt(work: Callable[[], T]) -> Attempt[T]:
    """Do work that may fail on this process alone. Pass the result to `settle`, which informs the others."""
    try:
        return Attempt(value=work())
    except Exception as error:
        return Attempt(error=error)


@dataclass(frozen=True)
class Report:
    """What one process sends to the others."""

    rank: int
    host: str
    reason: str | None = None  #: of its failure; None = it succeeded
    unavailable: bool = False  #: an external service failed, so another start may succeed
    facts: dict[str, dict[str, str]] | None = None  #: topic → name → digest


def gather(ranks: Ranks, report: Report) -> list[Report]:
    """The reports of all processes, in the order of ranks."""
    reports: list[Any] = [report]
    if ranks.world > 1:
        reports = [None] * ranks.world
        dist.all_gather_object(reports, report)
    return reports


def settle(ranks: Ranks, done: Attempt[T]) -> T:
    """The value, once every process has one. If some failed, raises UserError on all, with their ranks, hosts and reasons."""
    if ranks.world == 1:
        return done.get()
    unavailable = isinstance(done.error, UnavailableError)
    reports = gather(ranks, Report(ranks.rank, socket.gethostname(), done.reason, unavailable))
    failed = [report for report in reports if report.reason is not None]
    if done.error is not None and not isinstance(done.error, UserError | OSError):
        raise done.error  # a defect, whose traceback is needed
    if failed:
        raise failure(failed, ranks.world) from done.error
    return done.get()


def failure(failed: list[Report], world: int) -> UserError:
    """One error for the failures of several processes."""
    kind = UnavailableError if all(report.unavailable for report in failed) else UserError
    reasons: dict[str, list[Report]] = {}
    for report in failed:
        reasons.setdefault(str(report.reason), []).append(report)
    if len(reasons) == 1 and len(failed) == world:
        return kind(next(iter(reasons)))
    shown = [f"{describe_processes(reports)} failed: {reason}" for reason, reports in list(reasons.items())[:SHOWN_GROUPS]]
    more = f" (and {len(reasons) - SHOWN_GROUPS} other reasons)" if len(reasons) > SHOWN_GROUPS else ""
    return kind("; ".join(shown) + more)


def describe_processes(reports: list[Report]) -> str:
    """Ranks and hosts in words: `processes 0-3, 6 on gpu01, gpu02`."""
    numbers = sorted(report.rank for report in reports)
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    spans = [str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)]
    hosts = list(dict.fromkeys(report.host for report in reports))
    shown = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more hosts" if len(hosts) > 4 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(spans)} on {shown}"


def compare(ranks: Ranks, facts: Facts) -> None:
    """Raises UserError on all processes if a fact is not the same everywhere. The message names the first such fact."""
    own = {topic: {name: digest(value) for name, value in values.items()} for topic, values in facts.items()}
    reports = gather(ranks, Report(ranks.rank, socket.gethostname(), facts=own))
    for topic in REMEDIES:
        digests = [(report.facts or {}).get(topic, {}) for report in reports]
        for name in dict.fromkeys(name for values in digests for name in values):
            groups: dict[str, list[Report]] = {}
            for report, values in zip(reports, digests, strict=True):
                groups.setdefault(values.get(name, "nothing"), []).append(report)
            if len(groups) > 1:
                sides = [f"{value} on {describe_processes(group)}" for value, group in list(groups.items())[:SHOWN_GROUPS]]
                raise UserError(f"the processes do not agree on {name} ({topic}): {', '.join(sides)}. {REMEDIES[topic]}")


def digest(value: Any) -> str:
    """A short value as JSON, a long one as the first 16 digits of its SHA-256."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else hashlib.sha256(text.encode()).hexdigest()[:16]


Chosen = tuple[Path, Snapshot]  #: a checkpoint's folder, and its content


def share(ranks: Ranks, device: torch.device, choose: Callable[[], Chosen | None]) -> Chosen | None:
    """The checkpoint that the first process chooses with `choose`, on all processes; None if there is none.

    Only the first process reads the folder, once, and holds the tensors. The others know their shapes (torch's device `meta`)
    and receive the values one by one (`Delivery`). So a node with eight processes needs the memory of one copy.
    Raises UserError on all processes if the first one cannot read it.
    """
    first = ranks.rank == 0
    done = attempt(choose) if first else Attempt[Chosen | None]()
    if ranks.world == 1:
        return done.get()
    settle(ranks, done)
    header: list[Any] = [None]
    if done.value:
        folder, snapshot = done.value
        shapes = [{key: tuple(tensor.shape) for key, tensor in part.items()} for part in (snapshot.trainable, snapshot.moments)]
        header = [(str(folder), snapshot.state, *shapes)]
    dist.broadcast_object_list(header, src=0)
    if header[0] is None:
        return None
    path, state, *shapes = header[0]
    if not done.value:
        trainable, moments = ({key: torch.empty(shape, device="meta") for key, shape in part.items()} for part in shapes)
        done = Attempt((Path(path), Snapshot(trainable, moments, state)))
    folder, snapshot = done.get()  # type: ignore[misc]
    received = {"step": snapshot.state.get("step"), "state": snapshot.state}
    compare(ranks, {"checkpoint": {"checkpoint": folder.name, **received}})
    return folder, snapshot


class Delivery:
    """Tensors of the first process on all processes: one after the other, in the same order, and compared at the end."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks, self.device, self.total = ranks, device, hashlib.sha256()

    def get(self, name: str, tensor: Tensor) -> Tensor:
        """The first process's `tensor`, on this process's device. The others know its shape alone."""
        if self.ranks.world == 1:
            return tensor.to(self.device)
        first = self.ranks.rank == 0
        value = tensor.to(self.device) if first else torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        dist.broadcast(value, src=0)
        self.total.update(name.encode())
        self.total.update(value.cpu().contiguous().numpy().data)
        return value

    def compare(self) -> None:
        """Raises UserError on all processes if one received other values than the first one sent."""
        compare(self.ranks, {"checkpoint": {"weights": self.total.hexdigest()}})
