"""A logger: a table of steps and losses."""

from __future__ import annotations

import csv
from pathlib import Path

from mtbi.recipe import Recipe


class LossTable:
    """`losses.csv` in the run's folder."""

    def __init__(self, recipe: Recipe, fields: dict[str, float | str | bool]) -> None:
        self.path = Path(recipe.run_dir) / "losses.csv"

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add the loss of a step."""
        if "train/loss" in values:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow([step, values["train/loss"]])

    def close(self) -> None:
        """Nothing is open."""
