"""A grid of runs, arms × seeds × amounts of speech: `mtbi reproduce`. Each run is trained, then evaluated.

Evaluated runs are skipped and interrupted ones resume from their newest checkpoint, so the command can be repeated at any time.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml
from tqdm import tqdm

import mtbi
from mtbi import recipe as recipes
from mtbi.errors import UserError
from mtbi.recipe import Recipe

SHIPPED = Path(__file__).parent / "shipped"
REPOSITORY = Path(mtbi.__file__).parents[1]
DATA = "{data}"
YAML_KINDS = {list: "a list", dict: "a mapping of `key: value` lines", str: "text", int: "a whole number"}


@dataclass
class Arm:
    """One way of training."""

    label: str  #: for tables and plots
    fields: list[str]  #: `key=value` fields of the recipe, on top of those of `like`
    like: str = ""  #: another arm
    seeds: list[int] = field(default_factory=list)  #: empty = the grid's


@dataclass
class LessSpeech:
    """Further runs on a part of the speech."""

    arms: list[str] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)  #: an arm without such a seed is left out


@dataclass
class Compare:
    """Which differences are reported: one arm against others."""

    arm: str = ""
    with_: list[str] = field(default_factory=list)


@dataclass
class Grid:
    """A benchmark of many runs, as read from YAML."""

    recipe: str
    seeds: list[int]
    evaluate: dict[str, str]  #: shards by group of speakers
    arms: dict[str, Arm]
    world: str = ""  #: `digits`: make the data of the miniature world first
    cascade: str = ""  #: a CTC recogniser; empty = no cascade
    dialogues: int = 2000  #: in each group
    fields: list[str] = field(default_factory=list)  #: of every run
    less_speech: LessSpeech = field(default_factory=LessSpeech)
    compare: Compare = field(default_factory=Compare)


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    arm: str
    seed: int
    minutes: float = 0.0  #: of speech in the corpus; 0 = all

    @property
    def name(self) -> str:
        """Its folder below OUT/runs."""
        return f"{self.arm}/seed-{self.seed}" + (f"-{self.minutes:g}-minutes" if self.minutes else "")


def load(name_or_path: str) -> Grid:
    """A grid by shipped name or by path. Raises UserError for unknown keys, arms and fields."""
    path = SHIPPED / f"{name_or_path}.yaml"
    path = path if path.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(shipped.stem for shipped in SHIPPED.glob("*.yaml")))
        raise UserError(f"{name_or_path}: neither a file nor a shipped grid ({known})")
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    try:
        grid = build(record)
        for job in jobs(grid):
            job_recipe(grid, job, Path("out"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return grid


def build(record: Any) -> Grid:
    """A grid from a parsed YAML file. Raises UserError for what no grid can hold."""
    values = checked(record, Grid, "a grid")
    missing = [name for name in ("recipe", "seeds", "evaluate", "arms") if not values.get(name)]
    if missing:
        raise UserError(f"a grid needs `{missing[0]}`")
    arms = {str(name): Arm(**checked(arm, Arm, f"arm {name}")) for name, arm in values["arms"].items()}
    less = LessSpeech(**checked(values.get("less_speech") or {}, LessSpeech, "less_speech"))
    pairs = values.get("compare") or {}
    if not isinstance(pairs, dict):
        raise UserError(f"compare holds `arm: NAME` and `with: [NAME, …]`, not {pairs!r}")
    compare = Compare(str(pairs.get("arm", "")), list(pairs.get("with", [])))
    grid = Grid(**{**values, "arms": arms, "less_speech": less, "compare": compare})
    if grid.world not in ("", "digits"):
        raise UserError(f"world: {grid.world!r} is unknown; leave it out, or write digits")
    named = [*(arm.like for arm in arms.values()), *less.arms, compare.arm, *compare.with_]
    if unknown := [name for name in named if name and name not in arms]:
        raise UserError(f"no arm is called {unknown[0]!r}; there are {', '.join(arms)}")
    return grid


def checked(record: Any, kind: type, where: str) -> dict[str, Any]:
    """`record`, if it can be the arguments of the dataclass `kind`.

    Raises UserError for unknown keys, values of a wrong type, and missing fields.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where} holds `key: value` lines, not {record!r}")
    hints = get_type_hints(kind)
    for key, value in record.items():
        if key not in hints:
            near = get_close_matches(str(key), hints, 1)
            raise UserError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        wanted = get_origin(hints[key]) or hints[key]
        if wanted in YAML_KINDS and not isinstance(value, wanted):
            raise UserError(f"{where}: {key} must be {YAML_KINDS[wanted]}, not {value!r}")
    needed = [known.name for known in fields(kind) if known.default is MISSING and known.default_factory is MISSING]
    if missing := [name for name in needed if name not in record]:
        raise UserError(f"{where} needs `{missing[0]}`")
    return record


def jobs(grid: Grid) -> Iterator[Job]:
    """Every run: all arms with the first seed, then with the next, then the runs on less speech.

    A grid that is interrupted has complete seeds.
    """
    less = grid.less_speech
    own = {name: arm.seeds or grid.seeds for name, arm in grid.arms.items()}
    for seed in dict.fromkeys(seed for seeds in own.values() for seed in seeds):
        yield from (Job(name, seed) for name, seeds in own.items() if seed in seeds)
    for seed in less.seeds:
        yield from (Job(arm, seed, minutes) for minutes in less.minutes for arm in less.arms if seed in own[arm])


def arm_fields(grid: Grid, arm: str, seen: tuple[str, ...] = ()) -> list[str]:
    """The `key=value` fields of an arm, after those of the arms it is like. Raises UserError for a circle of arms."""
    if arm in seen:
        raise UserError(f"arms are like each other in a circle: {' → '.join((*seen, arm))}")
    own, like = grid.arms[arm].fields, grid.arms[arm].like
    return [*(arm_fields(grid, like, (*seen, arm)) if like else []), *own]


def job_fields(grid: Grid, job: Job, out: Path) -> list[str]:
    """The `key=value` fields of a run, on top of the grid's recipe."""
    chosen = [*grid.fields, *arm_fields(grid, job.arm), f"seed={job.seed}", f"name={job.arm}"]
    if job.minutes:
        chosen.append(f"plan.hours={job.minutes / 60!r}")
    return [text.replace(DATA, str(out / "data")) for text in chosen] + [f"run_dir={out / 'runs' / job.name}"]


def data_sets(grid: Grid, chosen: Iterable[Job]) -> set[str]:
    """The folders below OUT/data that the chosen runs name, by the first part of their path."""
    texts = [text for job in chosen for text in [*grid.fields, *arm_fields(grid, job.arm)]]
    return {name for text in [*texts, *grid.evaluate.values()] for name in re.findall(re.escape(DATA) + r"/([^/\],]+)", text)}


def job_recipe(grid: Grid, job: Job, out: Path) -> Recipe:
    """The recipe of a run."""
    return recipes.load(grid.recipe, job_fields(grid, job, out))


def commands(grid: Grid, job: Job, out: Path, processes: int) -> list[list[str]]:
    """The two commands of a run: training and evaluation."""
    binaries = Path(sys.executable).parent
    start = [sys.executable]
    if processes > 1:
        start = [str(binaries / "deepspeed"), "--num_accelerators", str(processes), "--no_local_rank"]
    train = [*start, str(REPOSITORY / "mtbi" / "train.py"), "--deepspeed", str(REPOSITORY / "ds_configs" / "zero1.json")]
    train += ["--recipe", grid.recipe, *job_fields(grid, job, out)]
    shards = [f"{name}={address.replace(DATA, str(out / 'data'))}" for name, address in grid.evaluate.items()]
    evaluate = [sys.executable, "-m", "mtbi.cli", "evaluate", str(out / "runs" / job.name), "--checkpoint", "latest"]
    evaluate += ["--shards", *shards, "--dialogues", str(grid.dialogues), "--batch-size", "256"]
    if grid.cascade and job == cascade_job(grid):
        evaluate += ["--cascade", grid.cascade]
    return [train, evaluate]


def cascade_job(grid: Grid) -> Job:
    """The run whose evaluation also asks the cascade. One is enough: all runs have the same recogniser and text LLM."""
    return Job(grid.compare.arm or next(iter(grid.arms)), grid.seeds[0])


def report_folder(grid: Grid, job: Job, out: Path) -> Path | None:
    """The folder with the evaluation of a run's last step; None while there is none."""
    steps = job_recipe(grid, job, out).train.steps
    folder = out / "runs" / job.name / "evaluation" / f"step-{steps:08d}"
    return folder if (folder / "report.json").exists() else None


def run_job(grid: Grid, job: Job, out: Path, processes: int, threads: int) -> str:
    """Train and evaluate a run; returns an error message, empty on success."""
    folder = out / "runs" / job.name
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        for command in commands(grid, job, out, processes):
            print("$", shlex.join(command), file=log, flush=True)
            done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, check=False)
            if done.returncode:
                return f"{job.name}: ended with status {done.returncode}, see {folder / 'log.txt'}"
    return ""


def run(grid: Grid, out: Path, parallel: int, processes: int, only: Iterable[Job]) -> list[str]:
    """Run the jobs that are not evaluated yet, `parallel` at once with `processes` processes each; returns error messages."""
    waiting = [job for job in only if report_folder(grid, job, out) is None]
    threads = max(1, len(os.sched_getaffinity(0)) // (parallel * processes))
    failures = []
    with ThreadPoolExecutor(parallel) as pool, tqdm(total=len(waiting), desc="runs", unit="run") as bar:
        for done in as_completed([pool.submit(run_job, grid, job, out, processes, threads) for job in waiting]):
            if failure := done.result():
                failures.append(failure)
                tqdm.write(failure)
            bar.update()
    return failures
