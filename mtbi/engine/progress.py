"""How far a run has come: what a checkpoint says beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtbi import recipe as recipes
from mtbi.batches.plan import Position, Step
from mtbi.engine.checkpoint import Snapshot
from mtbi.recipe import DataConfig, Recipe

#: What can go wrong without ending a run, each counted since the run began, over all its starts.
COUNTS = ("skipped_micro_batches", "loss_spikes", "rollbacks", "failed_checkpoints", "unreadable_utterances")
#: Utterances of which `data.max_unreadable_share` may be lost at the start of a run, or all of a smaller corpus.
FIRST_UTTERANCES = 10_000


def new_counts() -> dict[str, int]:
    """A run in which nothing went wrong."""
    return dict.fromkeys(COUNTS, 0)


@dataclass
class Progress:
    """Steps done, and where the next one begins."""

    step: int = 0
    position: Position = field(default_factory=Position)  #: of the next step's data
    audio_seconds: float = 0.0  #: heard so far, repetitions included
    data: dict[str, str] = field(default_factory=dict)  #: digests of what the position refers to, by name
    evaluation: str = ""  #: digest of what the evaluation reads
    utterances: int = 0  #: planned so far, repetitions and those left out as unreadable included
    counts: dict[str, int] = field(default_factory=new_counts)
    guard: dict[str, Any] = field(default_factory=dict)  #: of `Guard.to_state`

    @classmethod
    def of(cls, snapshot: Snapshot | None) -> Progress:
        """Where a checkpoint was made; the start without one. What older versions did not write is as at the start."""
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
        """The last so many steps were bad: the weights are nothing to go back to."""
        return int(self.guard.get("bad_steps", 0))

    def advance(self, step: Step, unreadable: int) -> None:
        """One more step is done, for which so many utterances could not be read."""
        self.step += 1
        self.position = step.next_position
        self.audio_seconds += step.audio_seconds
        self.utterances += sum(len(row.groups) for row in step.rows)
        self.counts["unreadable_utterances"] += unreadable

    def too_much_lost(self, data: DataConfig, corpus: int) -> str:
        """Why the run should end where more utterances are unreadable than allowed, or nothing. `corpus` is their number."""
        lost, asked = self.counts["unreadable_utterances"], max(self.utterances, min(corpus, FIRST_UTTERANCES))
        if lost <= data.max_unreadable_share * asked:
            return ""
        return (
            f"data.shards: {lost} of {self.utterances} utterances so far are lost or damaged, more than the share that "
            f"data.max_unreadable_share={data.max_unreadable_share:g} allows; the warnings above name them. Copy the shards "
            "again or make them again, or allow a larger share."
        )

    def to_state(self, recipe: Recipe, world: int) -> dict[str, Any]:
        """What `of` reads, with the recipe and the number of processes."""
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
