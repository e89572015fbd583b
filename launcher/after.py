"""What becomes of a Slurm job whose step has ended: it is done, or it starts again, or it has failed too often.

`slurm/train.sh` calls `python -m launcher.after STATUS …` as its last line; the exit status is the job's.
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

TOLD_LINES = 8
PAUSES = (5, 10, 20, 40, 80, 160)  #: seconds between attempts to requeue


def failed_tasks(srun_errors: str) -> list[tuple[str, str]]:
    """Nodes and tasks that srun names first, such as `("node2", "1")`; those it killed afterwards are left out."""
    return re.findall(r"^srun: error: (\S+): tasks? ([\d,-]+): (?!Terminated)", srun_errors, re.MULTILINE)


def last_words(logs: Path, task: str) -> str:
    """The last lines of a task's log."""
    path = logs / f"rank-{task.split('-')[0].split(',')[0]}.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return "\n".join(f"  {line}" for line in lines[-TOLD_LINES:])


def explain(status: int, logs: Path, srun_errors: str) -> tuple[str, str]:
    """What went wrong, for people, and the node it went wrong on, if known."""
    tasks = failed_tasks(srun_errors)
    if not tasks:
        return f"the step ended with status {status}", ""
    node, task = tasks[0]
    return f"task {task} on {node} failed first (status {status}); the end of its log:\n{last_words(logs, task)}", node


def requeue(job: str, pauses: Sequence[float] = PAUSES) -> None:
    """Put the job back into the queue; Slurm ends this process when it does. Its controller may be away for a few minutes."""
    command = ["scontrol", "requeue", job]
    for pause in pauses:
        if subprocess.run(command, check=False).returncode == 0:
            return
        print(f"mtbi: Slurm does not requeue the job, asking again in {pause:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)
    subprocess.run(command, check=True)


def own_status(status: int, srun_errors: str) -> int:
    """MISTAKE where a task ended so: srun tells the highest status, which may be that of a task it killed afterwards."""
    return MISTAKE if re.search(rf"Exited with exit code {MISTAKE}$", srun_errors, re.MULTILINE) else status


def spare_nodes(without: str) -> bool:
    """Whether the partition has enough usable nodes for this job without one of them."""
    wanted = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    command = ["sinfo", "--noheader", "--Node", "--states=idle,alloc,mix", "--format=%N"]
    command += [f"--partition={os.environ['SLURM_JOB_PARTITION']}"] if "SLURM_JOB_PARTITION" in os.environ else []
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return len(set(found) - {without}) >= wanted


def submit_without(node: str, script: Path, job: str) -> str:
    """Submit a whole script again, to run elsewhere once this job has ended; returns the new job. A job that runs, or is being
    requeued, can no longer be kept away from a node."""
    excluded = ",".join(filter(None, [os.environ.get("MTBI_EXCLUDED"), node]))
    command = ["sbatch", "--parsable", f"--exclude={excluded}", f"--dependency=afterany:{job}", str(script)]
    variables = {**os.environ, "MTBI_EXCLUDED": excluded}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


def decide(status: int, logs: Path, failures: Path, retries: int, job: str, script: Path | None = None) -> int:
    """Requeue the job where that may help; returns its exit status otherwise.

    A `script` that is whole (by `python -m launcher submit`) leaves a node that failed twice.
    """
    errors = logs / "srun.err"
    srun_errors = errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else ""
    status = own_status(status, srun_errors)
    if status in (0, MISTAKE):
        failures.unlink(missing_ok=True)
        return status
    if status == STOPPED:
        failures.unlink(missing_ok=True)
        requeue(job)
        return status
    why, node = explain(status, logs, srun_errors)
    with failures.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} status {status} node {node or '?'}\n")
    seen = re.findall(r"node (\S+)$", failures.read_text(encoding="utf-8"), re.MULTILINE)
    print(f"mtbi: {why}", file=sys.stderr)
    if len(seen) > retries:
        print(f"mtbi: {len(seen)} failures without a new checkpoint in between, giving up (MTBI_RETRIES)", file=sys.stderr)
        return status
    if node and seen.count(node) > 1 and spare_nodes(node):
        if script:
            print(f"mtbi: {node} failed twice, going on without it as job {submit_without(node, script, job)}", file=sys.stderr)
            return status
        print(f"mtbi: {node} failed {seen.count(node)} times; if it goes on: sbatch --exclude={node} …", file=sys.stderr)
    print(
        f"mtbi: starting again, failure {len(seen)} of at most {retries} without a new checkpoint", file=sys.stderr, flush=True
    )
    requeue(job)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("status", type=int, help="exit status of srun")
    parser.add_argument("--logs", type=Path, required=True, help="folder with srun.err and the ranks' logs")
    parser.add_argument(
        "--failures", type=Path, required=True, help="file with a line for each failure since the last checkpoint"
    )
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--script", type=Path, help="the job's script, if it holds all options and arguments")
    options = parser.parse_args(arguments)
    job = os.environ["SLURM_JOB_ID"]
    return decide(options.status, options.logs, options.failures, options.retries, job, options.script)


if __name__ == "__main__":
    sys.exit(main())
