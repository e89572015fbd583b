"""Where a run's numbers go besides TensorBoard (`train.loggers`): a JSONL file, Weights & Biases, MLflow, an installed logger.

Only the first process has loggers. A logger that fails is dropped with a warning, and the run goes on: a service that does not
answer at night must not keep a job from starting again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mtbi import plugins
from mtbi.errors import UserError
from mtbi.recipe import Recipe

log = logging.getLogger(__name__)
Fields = dict[str, float | str | bool]  #: every field of a recipe, by its path


class Logger(Protocol):
    """A destination of numbers. An installed one is made as `Name(recipe, fields)`."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Take numbers by name, such as `train/loss`. After a rollback or a restart, steps come again."""
        ...

    def close(self) -> None:
        """The run has ended or stops."""
        ...


def find(names: list[str]) -> list[Any]:
    """The classes of loggers. Raises UserError for an unknown name, and where a package is not installed."""
    found = [plugins.find(plugins.LOGGERS, name, plugins.SHIPPED[plugins.LOGGERS], "train.loggers:") for name in names]
    for name, kind in zip(names, found, strict=True):
        package = getattr(kind, "package", "")
        if package and not find_spec(package):
            raise UserError(f"train.loggers: {name} needs the package {package}: pip install {package}, or leave it out.")
    return found


class Loggers:
    """The loggers of a run. They are never a reason for it to end."""

    def __init__(self, recipe: Recipe, fields: Fields) -> None:
        self.open: dict[str, Logger] = {}
        for name, kind in zip(recipe.train.loggers, find(recipe.train.loggers), strict=True):
            try:
                self.open[name] = kind(recipe, fields)
            except Exception as error:  # a service may raise anything
                log.warning("train.loggers: %s cannot be opened and gets nothing: %r", name, error)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Give numbers to all loggers."""
        for name in list(self.open):
            self._try(name, lambda logger: logger.scalars(values, step))

    def close(self) -> None:
        """Close all loggers."""
        for name in list(self.open):
            self._try(name, lambda logger: logger.close())

    def _try(self, name: str, call: Any) -> None:
        try:
            call(self.open[name])
        except Exception as error:  # a service or a full disk may raise anything
            log.warning("train.loggers: %s failed and gets nothing more: %r", name, error)
            del self.open[name]


class JsonLines:
    """`metrics.jsonl` in the run's folder: a line of numbers with their `step`. A number that is not finite is null."""

    def __init__(self, recipe: Recipe, fields: Fields) -> None:
        path = Path(recipe.run_dir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a", encoding="utf-8")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write a line."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class WeightsAndBiases:
    """Weights & Biases. Its own variables choose account and place (`WANDB_API_KEY`, `WANDB_MODE=offline`, …).

    The id is that of the run's folder, so a restarted run goes on in the same place.
    """

    package: ClassVar[str] = "wandb"

    def __init__(self, recipe: Recipe, fields: Fields) -> None:
        import wandb

        folder = Path(recipe.run_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        self.run = wandb.init(
            project="mtbi", group=recipe.name, name=folder.name, id=name, resume="allow", dir=str(folder), config=dict(fields)
        )
        self.run.define_metric("*", step_metric="step")  # W&B's own step cannot go back, ours does after a rollback

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """MLflow. Its own variables choose the place (`MLFLOW_TRACKING_URI`). `mlflow_run` in the run's folder keeps the id."""

    package: ClassVar[str] = "mlflow"
    LONGEST_VALUE: ClassVar[int] = 500  #: of a parameter; older servers refuse longer ones

    def __init__(self, recipe: Recipe, fields: Fields) -> None:
        import mlflow

        self.client, folder = mlflow.MlflowClient(), Path(recipe.run_dir)
        kept = folder / "mlflow_run"
        if kept.exists():
            self.run_id = kept.read_text(encoding="utf-8").strip()
            return
        experiment = mlflow.set_experiment("mtbi").experiment_id
        self.run_id = self.client.create_run(experiment, run_name=folder.name).info.run_id
        for path, value in fields.items():
            self.client.log_param(self.run_id, path, str(value)[: self.LONGEST_VALUE])
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(self.run_id + "\n", encoding="utf-8")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Log numbers."""
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished. A later start of it adds to it all the same."""
        self.client.set_terminated(self.run_id)
