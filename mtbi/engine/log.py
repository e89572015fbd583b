"""A run's log: a line every few steps, a progress bar on a terminal, TensorBoard files, and further loggers."""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mtbi import recipe as recipes
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.plan import Step
from mtbi.engine.loggers import Loggers
from mtbi.engine.sums import Means, StepSums, add
from mtbi.model.flops import LLMSize
from mtbi.recipe import Recipe

log = logging.getLogger(__name__)

#: Dense bf16 peak of one GPU in FLOP/s, from the vendors' data sheets, by a part of the driver's name.
PEAK_FLOPS = {
    "H100": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200": 989e12, "H200 NVL": 835e12, "H800": 989e12, "H20": 148e12,
    "B200": 2250e12, "GB200": 2500e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "MI300X": 1307e12,
}  # fmt: skip


#: Faults that do not end a run. Each is counted over all starts of the run.
COUNTS = ("skipped_micro_batches", "loss_spikes", "rollbacks", "failed_checkpoints", "unreadable_utterances")


def new_counts() -> dict[str, int]:
    """The counts of a run without faults."""
    return dict.fromkeys(COUNTS, 0)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None if it is unknown."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """A GPU's peak in FLOP/s by its driver's name, such as `NVIDIA A100-SXM4-80GB`; None if it is not listed."""
    words = re.sub(r"[^A-Za-z0-9]+", " ", name)
    matching = [key for key in PEAK_FLOPS if re.search(rf"\b{key}\b", words)]
    return PEAK_FLOPS[max(matching, key=len)] if matching else None


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that this process has held, in GB: on the GPU if there is one, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux


def layout(tasks: list[str], sources: Sequence[str] = ()) -> dict[str, dict[str, list]]:
    """The charts of TensorBoard's page CUSTOM SCALARS: is it learning, is it fast, is it healthy?

    Charts by source are there where the run has several.
    """
    by_source = ("loss", "agreement") if len(sources) > 1 else ()

    def lines(*names: str) -> list:
        return ["Multiline", list(names)]

    return {
        "1 is it learning?": {
            "loss": lines("train/loss", "eval/loss"),
            "agreement with the text LLM on held-out prompts": lines("eval/agreement"),
            "loss by task": lines(*(f"task_loss/{task}" for task in tasks)),
            "agreement by task": lines(*(f"task_agreement/{task}" for task in tasks)),
            **{f"{what} by source": lines(*(f"source_{what}/{name}" for name in sources)) for what in by_source},
        },
        "2 is it fast?": {
            "tokens a second": lines("speed/tokens_per_second", "speed/answer_tokens_per_second"),
            "seconds a step": lines("speed/step_seconds"),
            "shares of time and slots lost": lines("speed/data_wait_share", "speed/unused_slots_share"),
            "model FLOP/s utilisation": lines("speed/mfu"),
        },
        "3 is it healthy?": {
            "gradient norm": lines("train/gradient_norm"),
            "learning rate": lines("train/learning_rate"),
            "memory, GB": lines("speed/memory_gb"),
            "skips and roll-backs": lines("health/.*"),
        },
    }


def hyperparameters(recipe: Recipe) -> dict[str, float | str | bool]:
    """Every field of a recipe by its path, without `run_dir` itself, so that two runs of one recipe have the same fields."""

    def as_hyperparameter(path: str) -> Any:
        value = recipes.value_of(recipe, path)
        text = json.dumps(value) if isinstance(value, (list, dict)) else value
        own = path.startswith("data.") and isinstance(text, str)
        return text.replace(f"{recipe.run_dir}/", f"{recipes.RUN_DIR}/") if own else text

    return {note.path: as_hyperparameter(note.path) for note in recipes.reference() if note.path != "run_dir"}


@dataclass
class Interval:
    """Sums since the last log line."""

    began: float = field(default_factory=time.perf_counter)
    steps: int = 0
    means: Means = field(default_factory=dict)
    tokens: int = 0
    targets: int = 0
    audio_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    used_share: float = 0.0

    def add(self, plan: Step, sums: StepSums, data_wait_seconds: float) -> None:
        """Add a step."""
        self.steps += 1
        self.means = add(self.means, sums.means)
        self.tokens += plan.tokens
        self.targets += plan.target_tokens
        self.audio_seconds += plan.audio_seconds
        self.data_wait_seconds += data_wait_seconds
        self.used_share += plan.used_share

    def values(self, tasks: Sequence[str], sources: Sequence[str] = ()) -> dict[str, float]:
        """Every mean by its name in TensorBoard: `train/NAME`, or `NAME/TASK` and `NAME/SOURCE` for those that had a target."""
        values = {}
        for name, mean in self.means.items():
            if mean.dim() == 1:
                total, weight = mean.tolist()
                values[f"train/{name}"] = total / weight if weight else float("nan")
                continue
            several = sources if len(sources) > 1 else ()
            values |= by_name(name, mean, several if name.startswith("source_") else tasks)
        return values


def by_name(name: str, mean: torch.Tensor, parts: Sequence[str]) -> dict[str, float]:
    """The means `(2, parts)` by task or by source, as `NAME/PART`, of those that had a target."""
    pairs = zip(parts, mean.T.tolist(), strict=False)  # a model counts more sources than the evaluation has, or fewer
    return {f"{name}/{part}": total / max(weight, 1e-9) for part, (total, weight) in pairs if weight}


def never_ends_the_run(write: Callable[..., None]) -> Callable[..., None]:
    """Log an OSError of `write` instead of raising it. A full disk must not end a run for the sake of TensorBoard."""

    @wraps(write)
    def call(*arguments: Any) -> None:
        try:
            write(*arguments)
        except OSError as error:
            log.warning("TensorBoard's files could not be written: %s", error)

    return call


class Metrics:
    """Logs the steps of a run. Only the first process writes; on the others every call does nothing."""

    def __init__(
        self,
        recipe: Recipe,
        tasks: list[str],
        first: bool,
        world: int,
        llm_size: LLMSize,
        device: torch.device,
        counts: dict[str, int] | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        """`counts` are those of the run's `Progress`. They are updated in place. `sources` names the folders of shards."""
        steps = recipe.train.steps
        self.tasks, self.first, self.world, self.steps, self.device = tasks, first, world, steps, device
        self.sources = sources
        self.llm_size, self.peak = llm_size, peak_flops(device)
        self.interval = Interval()
        self.counts = new_counts() if counts is None else counts  #: since the run began
        self.writer = SummaryWriter(f"{recipe.run_dir}/tensorboard", flush_secs=15) if first else None
        fields = hyperparameters(recipe)
        self.loggers = Loggers(recipe, fields) if first else None
        if self.writer:
            self.writer.add_custom_scalars(layout(tasks, sources))
            self.writer._get_file_writer().add_summary(hparams_pb(fields, trial_id=recipe.run_dir))
        self.bar = tqdm(total=steps, unit="step", disable=not (first and sys.stderr.isatty()), dynamic_ncols=True)

    def write_line(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.first:
            with self.bar.external_write_mode(file=sys.stdout):
                print(text, flush=True)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write numbers by name to TensorBoard and to the recipe's loggers."""
        self._to_tensorboard(values, step)
        if self.loggers:
            self.loggers.scalars(values, step)

    @never_ends_the_run
    def _to_tensorboard(self, values: dict[str, float], step: int) -> None:
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def skipped(self, number: int, micro_batches: int, of: int, spikes: int) -> None:
        """Count the micro-batches left out of step `number` (`micro_batches` of `of`), and all spikes of the loss so far."""
        self.counts["loss_spikes"] = spikes
        self.counts["skipped_micro_batches"] += micro_batches
        if micro_batches:
            self.write_line(f"step {number}: {micro_batches} of {of} micro-batches left out, their loss is not finite")

    def step(self, number: int, plan: Step, sums: StepSums, data_wait_seconds: float, rate: float, every: int) -> None:
        """Account for step `number` (from 1); every few steps write the line and the numbers."""
        self.interval.add(plan, sums, data_wait_seconds)
        self.bar.n = number
        self.bar.refresh()
        if number % every and number != self.steps:
            return
        interval, self.interval = self.interval, Interval()
        seconds = time.perf_counter() - interval.began
        values = interval.values(self.tasks, self.sources) | {
            "train/learning_rate": rate,
            "train/gradient_norm": sums.gradient_norm,
            "speed/step_seconds": seconds / interval.steps,
            "speed/tokens_per_second": interval.tokens / seconds,
            "speed/answer_tokens_per_second": interval.targets / seconds,
            "speed/audio_seconds_per_second": interval.audio_seconds / seconds,
            "speed/data_wait_share": interval.data_wait_seconds / seconds,
            "speed/unused_slots_share": 1 - interval.used_share / interval.steps,
        }
        values["speed/memory_gb"] = peak_memory_gb(self.device)
        values |= {f"health/{what}": float(count) for what, count in self.counts.items()}
        if self.peak:
            values["speed/mfu"] = (
                self.llm_size.computed_flops(interval.tokens, interval.targets) / seconds / self.world / self.peak
            )
        self.scalars(values, number)
        mfu = f" mfu {values['speed/mfu']:.1%}" if "speed/mfu" in values else ""
        self.write_line(
            f"step {number}/{self.steps} loss {values['train/loss']:.4f} lr {rate:.2e} grad {sums.gradient_norm:.3f} "
            f"{1000 * seconds / interval.steps:.0f} ms/step {values['speed/tokens_per_second']:.0f} tok/s "
            f"{values['speed/answer_tokens_per_second']:.0f} answer tok/s wait {values['speed/data_wait_share']:.1%}{mfu} "
            f"epoch {plan.position.epoch} data step {plan.position.step}"
        )

    @never_ends_the_run
    def dialogue(self, index: int, text: str, wave: np.ndarray, step: int) -> None:
        """Write dialogue number `index` of an evaluation to TensorBoard: its text and its waveform `(samples,)`."""
        if self.writer:
            self.writer.add_text(f"dialogue/{index}", text, step)
            self.writer.add_audio(f"dialogue/{index}", torch.from_numpy(wave)[None], step, sample_rate=SAMPLE_RATE)

    @never_ends_the_run
    def alignment(self, index: int, similarity: np.ndarray, words: list[str], seconds_per_frame: float, step: int) -> None:
        """Write a heat map of `similarity` `(frames, words)` to TensorBoard. Needs matplotlib; does nothing without it."""
        if not self.writer or not find_spec("matplotlib"):
            return
        from matplotlib.image import imread

        from mtbi import pictures

        with TemporaryDirectory() as folder:
            path = Path(folder) / "map.png"
            pictures.similarity({f"step {step}": similarity}, words, seconds_per_frame, "sound against words", path)
            self.writer.add_image(f"alignment/{index}", imread(path), step, dataformats="HWC")

    @never_ends_the_run
    def close(self) -> None:
        """Close the progress bar and the files."""
        self.bar.close()
        if self.loggers:
            self.loggers.close()
        if self.writer:
            self.writer.close()
