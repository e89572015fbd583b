"""Decides what a Slurm job does once its step has ended: end, start again, or give up after too many failures.

`slurm/train.sh` calls `python -m launcher.after STATUS …` as its last line. The exit status is the job's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from launcher.ranks import MISTAKE, STOPPED

SHOWN_LINES = 8
PAUSES = (5, 10, 20, 40, 80, 160)  #: seconds between attempts to requeue


def log(message: str) -> None:
    """Print a message to the job's output."""
    print(f"mtbi: {message}", file=sys.stderr, flush=True)


def failed_tasks(srun_errors: str) -> list[tuple[str, str]]:
    """Nodes and tasks that failed, such as `("node2", "1")`, in srun's order, without those that srun ended afterwards."""
    return re.findall(r"^srun: error: (\S+): tasks? ([\d,-]+): (?!Terminated)", srun_errors, re.MULTILINE)


def first_task(tasks: str) -> str:
    """The first of the tasks `3,7-9`."""
    return tasks.split(",")[0].split("-")[0]


def last_lines(logs: Path, task: str) -> str:
    """The end of a task's log."""
    path = logs / f"rank-{first_task(task)}.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])


def explain_failure(status: int, logs: Path, srun_errors: str) -> tuple[str, str]:
    """A message about the failure, and the name of the node that failed first, or "" if it is unknown."""
    tasks = failed_tasks(srun_errors)
    if not tasks:
        return f"the step ended with status {status}; see {logs}", ""
    node, task = tasks[0]
    return f"task {task} on {node} failed first (status {status}); the end of its log:\n{last_lines(logs, task)}", node


def requeue(job: str, pauses: Sequence[float] = PAUSES) -> None:
    """Put the job back into the queue. Slurm then ends this process.

    Slurm's controller may be away for some minutes, so this tries again after each of `pauses`, in seconds.
    """
    command = ["scontrol", "requeue", job]
    for pause in pauses:
        if subprocess.run(command, check=False).returncode == 0:
            return
        log(f"Slurm did not requeue job {job}; next attempt in {pause:g} s")
        time.sleep(pause)
    subprocess.run(command, check=True)


def own_status(status: int, srun_errors: str) -> int:
    """MISTAKE if a task ended with it, else `status`. srun returns the highest status, perhaps that of a task it ended."""
    return MISTAKE if re.search(rf"Exited with exit code {MISTAKE}$", srun_errors, re.MULTILINE) else status


def has_spare_nodes(excluded: str) -> bool:
    """Whether the partition has enough usable nodes for this job without the node `excluded`."""
    wanted = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    command = ["sinfo", "--noheader", "--Node", "--states=idle,alloc,mix", "--format=%N"]
    command += [f"--partition={os.environ['SLURM_JOB_PARTITION']}"] if "SLURM_JOB_PARTITION" in os.environ else []
    usable = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return len(set(usable) - {excluded}) >= wanted


def submit_without(node: str, script: Path, job: str) -> str:
    """Submit the job's script again without `node`, to start once this job has ended; returns the new job's number.

    Slurm cannot exclude a node from a job that runs or is being requeued.
    """
    excluded = ",".join(filter(None, [os.environ.get("MTBI_EXCLUDED"), node]))
    command = ["sbatch", "--parsable", f"--exclude={excluded}", f"--dependency=afterany:{job}", str(script)]
    variables = {**os.environ, "MTBI_EXCLUDED": excluded}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


def decide(status: int, logs: Path, failures: Path, retries: int, job: str, script: Path | None = None) -> int:
    """Requeue the job if another start may help; returns the job's exit status.

    `script` is the job's script if it is complete, as `python -m launcher submit` writes it. Then a node that failed twice is
    excluded by submitting the script again.
    """
    path = logs / "srun.err"
    srun_errors = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    status = own_status(status, srun_errors)
    if status in (0, MISTAKE, STOPPED):
        failures.unlink(missing_ok=True)
        if status == STOPPED:
            requeue(job)
        elif status == MISTAKE and "0" not in {first_task(task) for _, task in failed_tasks(srun_errors)}:
            log(explain_failure(status, logs, srun_errors)[0])  # the log of task 0 is the job's output already
        return status
    message, node = explain_failure(status, logs, srun_errors)
    log(message)
    nodes = record_failure(failures, status, node)
    if len(nodes) > retries:
        log(f"{len(nodes)} failures without a new checkpoint in between, giving up (MTBI_RETRIES)")
        return status
    if node and nodes.count(node) > 1 and has_spare_nodes(node):
        if script:
            log(f"{node} failed twice, going on without it as job {submit_without(node, script, job)}")
            return status
        log(f"{node} failed {nodes.count(node)} times; to leave it out: sbatch --exclude={node} …")
    log(f"starting again, failure {len(nodes)} of at most {retries} without a new checkpoint")
    requeue(job)
    return status


def record_failure(failures: Path, status: int, node: str) -> list[str]:
    """Append a failure to the file of those since the last checkpoint; returns the nodes of all of them, `?` = unknown."""
    with failures.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} status {status} node {node or '?'}\n")
    return re.findall(r"node (\S+)$", failures.read_text(encoding="utf-8"), re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("status", type=int, help="exit status of srun")
    parser.add_argument("--logs", type=Path, required=True, help="folder with srun.err and the ranks' logs")
    parser.add_argument(
        "--failures", type=Path, required=True, help="file with a line for each failure since the last checkpoint"
    )
    parser.add_argument("--retries", type=int, default=3, help="failures allowed without a new checkpoint (default: 3)")
    parser.add_argument("--script", type=Path, help="the job's script, if it holds all options and arguments")
    options = parser.parse_args(arguments)
    job = os.environ["SLURM_JOB_ID"]
    return decide(options.status, options.logs, options.failures, options.retries, job, options.script)


if __name__ == "__main__":
    sys.exit(main())
