"""Tests that faults of a cluster do not change the result of a run.

    .venv/bin/python tools/chaos.py OUT --faults 50 --seed 1

Trains the miniature world on a real Slurm cluster of two nodes and a real S3 server, and makes faults: a rank is killed or
stopped, the job is preempted, a node or the controller is killed, the store answers 503 or breaks the connection. Each fault is
made equally often. Each round trains one run. Rounds go on until all faults have been made.

After each round, every step's loss and position in the data, and the final weights, must equal those of an undisturbed run to
the last bit. At the end, no process and no shared memory may be left. Writes OUT/chaos.json. `tools/install_servers.sh`
installs the servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import boto3
import torch
from servers.faulty_proxy import Faults, faulty_proxy
from servers.slurm import ENDED, NODES, Cluster, processes_with, rank_process, slurm_cluster
from servers.swift import swift_server

from launcher.distributed import build_collectives
from mtbi import recipe as recipes
from mtbi.answers.store import AnswerStore
from mtbi.corpus.manifest import read_manifest
from mtbi.demo import corpus
from mtbi.demo import run as demo
from mtbi.engine import checkpoint
from mtbi.llm.chat_format import read_chat
from mtbi.shards.write import write_shards

REPOSITORY = Path(__file__).resolve().parents[1]
SHARDS = "s3://chaos/train"
FIELDS = [
    "train.log_every_steps=1", "train.eval_every_steps=0", "train.checkpoint_every_steps=5", "train.warmup_steps=5",
    "train.start_utterances=32", "train.hang_seconds=40",
    "plan.row_tokens=256", "plan.rows_per_step=2", "plan.rows_per_micro_batch=1",
    "plan.window_utterances=400", "precision=fp32", "data.eval_shards=[]", f"data.shards=[{SHARDS}]",
    "data.cache_limit_gb=0.016", "data.retries=8",
]  # fmt: skip
TIMEOUT_SECONDS = 300
SAVED_SECONDS = 6  #: after which Slurm's controller has saved a requeue to disk
STRINGS = 1000  #: of spoken digits, to train on
SHARD_BYTES = 1 << 22


@dataclass
class Round:
    """One run, and the faults that were made while it trained."""

    name: str
    job: str
    faults: list[str] = field(default_factory=list)
    restarts: int = 0


@dataclass
class World:
    """The servers that faults are made to."""

    out: Path
    cluster: Cluster
    store: Faults
    steps: int
    deck: list[str] = field(default_factory=list)  #: the next faults: each kind once, in random order

    def submit(self, name: str) -> Round:
        """Start a run on both nodes."""
        environment = {
            "MTBI_VENV": sys.prefix, "MTBI_LOGS": str(self.out / "logs"), "MTBI_RETRIES": "1000", "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        job = self.cluster.submit(
            "--nodes=2", "--ntasks-per-node=1", f"--output={self.out}/{name}.out", "slurm/train.sh", *FIELDS,
            f"train.steps={self.steps}", f"run_dir={self.out / name}", f"data.cache_dir={self.out / name}/cache",
            cwd=REPOSITORY, **environment,
        )  # fmt: skip
        return Round(name, job)

    def log(self, name: str) -> str:
        """The run's output, over all starts."""
        path = self.out / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def last_step(self, name: str) -> int:
        """The newest step in the log."""
        steps = re.findall(r"^step (\d+)/", self.log(name), re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def hasten(self, run: Round) -> str:
        """Start a requeued job without delay; returns the job's state, "" while the controller is away."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            return self.cluster.hasten(run.job)["JobState"]
        return ""

    def state(self, run: Round) -> str:
        """The states of Slurm, the processes and the run's log, for the message of a round that failed."""
        commands = [("scontrol", "show", "job", run.job), ("sinfo", "--Node", "--long")]
        commands.append(("ps", "-eo", "pid,ppid,stat,etimes,args"))
        outputs = [f"$ {' '.join(command)}\n{self.cluster.call(*command, check=False)}" for command in commands]
        return "\n".join([*outputs, self.log(run.name)[-6000:]])

    def finish(self, run: Round) -> None:
        """Wait for the run to end. Raises RuntimeError unless it has completed."""
        record = self.cluster.wait(run.job, TIMEOUT_SECONDS)
        if record["JobState"] != "COMPLETED":
            raise RuntimeError(f"{run.name} ended as {record['JobState']}; {self.state(run)}")
        run.restarts = int(record["Restarts"])


Fault = Callable[[World, Round, random.Random], None]


def signal_rank(number: int) -> Fault:
    """A fault that sends a signal to one rank."""

    def send(world: World, run: Round, rng: random.Random) -> None:
        rank, deadline = rng.randrange(2), time.monotonic() + TIMEOUT_SECONDS
        while not (pid := rank_process(run.job, rank)):  # it has not started yet, or starts again after the last fault
            if time.monotonic() > deadline:
                raise RuntimeError(f"no process {rank} of job {run.job} in {TIMEOUT_SECONDS} s; {world.state(run)}")
            world.hasten(run)
            time.sleep(0.3)
        os.kill(pid, number)

    return send


def preempt(world: World, run: Round, rng: random.Random) -> None:
    """Send the signal that Slurm sends before the time limit."""
    world.cluster.call("scancel", "--signal=USR2", run.job, check=False)


def kill_node(world: World, run: Round, rng: random.Random) -> None:
    """Kill a node with everything that runs on it, and start it again."""
    node = rng.choice(NODES)
    world.cluster.kill(node)
    time.sleep(rng.uniform(0.5, 3))
    world.cluster.start(node)


def kill_controller(world: World, run: Round, rng: random.Random) -> None:
    """Kill Slurm's controller, and start it again.

    The controller loses what it received in its last seconds, for example that a job is requeued. So this waits until the run
    makes steps.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while world.hasten(run) not in ENDED:
        before = world.last_step(run.name)
        time.sleep(SAVED_SECONDS)
        if world.last_step(run.name) > before:
            break
        if time.monotonic() > deadline:
            raise RuntimeError(f"no step in {TIMEOUT_SECONDS} s; {world.state(run)}")
    world.cluster.kill("slurmctld")
    time.sleep(rng.uniform(0.5, 3))
    world.cluster.start("slurmctld")


def break_store(world: World, run: Round, rng: random.Random) -> None:
    """Let the next few requests to the store fail."""
    world.store.waiting = rng.choices(["500", "503", "slow", "dropped", "truncated"], k=rng.randint(2, 5))


FAULTS: dict[str, Fault] = {
    "rank killed": signal_rank(signal.SIGKILL),
    "rank stopped": signal_rank(signal.SIGSTOP),
    "preempted": preempt,
    "node killed": kill_node,
    "controller killed": kill_controller,
    "store fails": break_store,
}


def wait_for_step(world: World, run: Round, beyond: int) -> bool:
    """Wait until the log has a step after its first `beyond` characters; returns False if the job has ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if world.hasten(run) in ENDED:
            return False
        if re.search(r"^step \d+/", world.log(run.name)[beyond:], re.MULTILINE):
            return True
        time.sleep(0.3)
    raise RuntimeError(f"no step in {TIMEOUT_SECONDS} s; {world.state(run)}")


def disturb(world: World, name: str, count: int, rng: random.Random) -> Round:
    """Train one run, and make up to `count` faults while it trains."""
    training = world.submit(name)
    size = 0
    while len(training.faults) < count and wait_for_step(world, training, size):
        time.sleep(rng.uniform(0, 4))
        if world.last_step(name) > world.steps - 3:
            break
        size = len(world.log(name))
        world.deck = world.deck or rng.sample(list(FAULTS), len(FAULTS))
        fault = world.deck.pop()
        FAULTS[fault](world, training, rng)
        training.faults.append(fault)
        print(f"{name}: fault {len(training.faults)} near step {world.last_step(name)}: {fault}", flush=True)
    world.finish(training)
    return training


def steps_of(text: str) -> dict[int, set[tuple[str, str]]]:
    """By step: the pairs of loss and position in the data. A step that was computed again must have one pair only."""
    steps: dict[int, set[tuple[str, str]]] = {}
    for step, loss, position in re.findall(r"^step (\d+)/\d+ loss (\S+) .* (epoch \d+ data step \d+)$", text, re.MULTILINE):
        steps.setdefault(int(step), set()).add((loss, position))
    return steps


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The final weights."""
    folder = checkpoint.latest_valid(run_dir)
    if folder is None:
        raise RuntimeError(f"{run_dir}: no whole checkpoint")
    return checkpoint.load_trainable(folder)


def compare(world: World, quiet: str, name: str) -> list[str]:
    """The differences between a disturbed run and the undisturbed run `quiet`."""
    expected, actual = steps_of(world.log(quiet)), steps_of(world.log(name))
    missing = sorted(set(range(1, world.steps + 1)) - set(actual))
    differing = [step for step in sorted(actual) if actual[step] != expected[step]]
    differences = [f"steps {missing} were never logged"] if missing else []
    differences += [f"step {step}: {actual[step]} instead of {expected[step]}" for step in differing]
    before, after = weights(world.out / quiet), weights(world.out / name)
    return differences + [f"{key} differs" for key in before if not torch.equal(before[key], after[key])]


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir("/dev/shm"))


def upload(data: Path) -> None:
    """Upload small shards: strings of digits spoken by espeak-ng, with answers."""
    recipe, digits = recipes.load("demo"), demo.import_digits(data, None)
    folder = demo.prepare_split(replace(corpus.SPLITS[0], strings=STRINGS), data, digits, recipe).parent
    utterances, answers = read_manifest(folder / "aligned.jsonl"), AnswerStore(folder / "behaviour")
    write_shards(utterances, folder, answers, read_chat(recipe), SHARDS, shard_bytes=SHARD_BYTES)


@contextlib.contextmanager
def servers(out: Path) -> Iterator[tuple[Cluster, Faults]]:
    """Run Slurm, and an S3 server behind a proxy that makes faults, with the training shards of the miniature world."""
    folder = Path(tempfile.mkdtemp(prefix="mtbi-chaos-"))  # sockets need a short path
    with swift_server(folder) as environment, faulty_proxy(environment["S3_ENDPOINT_URL"]) as (address, faults):
        os.environ.update(environment, S3_ENDPOINT_URL=address)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="chaos")
        upload(out / "data")
        with slurm_cluster(folder / "c") as cluster:
            yield cluster, faults
    shutil.rmtree(folder, ignore_errors=True)


def run(out: Path, faults: int, steps: int, seed: int) -> dict:
    """Run the whole experiment; returns the content of chaos.json."""
    rng, before, began = random.Random(seed), shared_memory(), time.perf_counter()
    rounds: list[Round] = []
    with servers(out) as (cluster, proxy):
        world = World(out, cluster, proxy, steps)
        world.finish(world.submit("quiet"))
        differences: dict[str, list[str]] = {}
        while (made := sum(len(finished.faults) for finished in rounds)) < faults:
            name = f"round-{len(rounds) + 1}"
            rounds.append(disturb(world, name, faults - made, rng))
            differences[name] = compare(world, "quiet", name)
            print(f"{name}: {len(rounds[-1].faults)} faults, {differences[name] or 'nothing differs'}", flush=True)
        left = [pid for finished in rounds for pid in processes_with(f"SLURM_JOB_ID={finished.job}")]
    return {
        "faults": sum(len(finished.faults) for finished in rounds),
        "by_kind": dict(Counter(fault for finished in rounds for fault in finished.faults)),
        "rounds": len(rounds),
        "steps_each": steps,
        "restarts": [finished.restarts for finished in rounds],
        "seed": seed,
        "differences": {name: texts for name, texts in differences.items() if texts},
        "processes_left": len(left),
        "shared_memory_left": sorted(shared_memory() - before),
        "restart_to_first_step_seconds": restart_seconds(out, rounds),
        "minutes": round((time.perf_counter() - began) / 60, 1),
    }


def restart_seconds(out: Path, rounds: list[Round]) -> dict[str, float]:
    """Seconds from a start of the batch script to its first step, over all starts that made a step."""
    seconds = []
    for finished in rounds:
        for folder in (out / "logs" / finished.job).glob("[0-9]*"):
            log = folder / "rank-0.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            if match := re.search(r"first step after ([\d.]+) s", text):
                seconds.append(float(match[1]))
    return {"median": statistics.median(seconds), "most": max(seconds)} if seconds else {}


def main() -> int:
    """Run the command; returns 1 if a run differed, or something was left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for data, runs and chaos.json; rounds of an earlier run are deleted")
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60, help="steps of each round (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    out = options.out.resolve()
    for old in (*out.glob("round-*"), *out.glob("quiet*"), out / "logs"):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    build_collectives()  # on a fresh machine this takes longer than the runs' watchdogs wait
    record = run(out, options.faults, options.steps, options.seed)
    (out / "chaos.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 1 if record["differences"] or record["processes_left"] or record["shared_memory_left"] else 0


if __name__ == "__main__":
    sys.exit(main())
