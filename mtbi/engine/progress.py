"""How far a run has come: what a checkpoint says beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtbi import recipe as recipes
from mtbi.data.plan import Position, Step
from mtbi.engine.checkpoint import Snapshot
from mtbi.recipe import Recipe


@dataclass
class Progress:
    """Steps done, and where the next one begins."""

    step: int = 0
    position: Position = field(default_factory=Position)  #: of the next step's data
    audio_seconds: float = 0.0  #: heard so far, repetitions included
    data: dict[str, str] = field(default_factory=dict)  #: digests of what the position refers to, by name
    evaluation: str = ""  #: digest of what the evaluation reads

    @classmethod
    def of(cls, snapshot: Snapshot | None) -> Progress:
        """Where a checkpoint was made; the start without one."""
        if snapshot is None:
            return cls()
        state = snapshot.state
        return cls(int(state["step"]), Position.from_json(state["position"]), float(state["audio_seconds"]))

    def advance(self, step: Step) -> None:
        """One more step is done."""
        self.step += 1
        self.position = step.next_position
        self.audio_seconds += step.audio_seconds

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
        }
