"""The step times that `mtbi plan` predicts against measured ones. `python benchmarks/scaling/run.py [--out FOLDER]`

The models of the training benchmark are trained on 1, 2 and 4 processes of one thread each, with ZeRO-1 and ZeRO-3. The median
step time is compared with the prediction from the run on one process and the bandwidth that launcher/preflight.py measures.
If there are more processes than cores, the prediction gives each its share of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import header, save
from training import world

from launcher.distributed import build_collectives
from launcher.ranks import free_port
from mtbi import recipe as recipes
from mtbi.engine import memory, step_time
from mtbi.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
PROCESSES = (1, 2, 4)
STAGES = {1: "ZeRO-1", 3: "ZeRO-3"}
STEPS, WARM_UP = 8, 2
LINE = re.compile(r"^step \d+/.* (\d+) ms/step (\d+) tok/s", re.MULTILINE)


def launch(processes: int, *command: str) -> str:
    """Run a script on some processes. Returns its standard output."""
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*start, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return done.stdout


def train(recipe_path: Path, stage: int, processes: int) -> tuple[float, float]:
    """The median seconds of a step, and token positions per second."""
    run_dir = recipe_path.with_name(f"run-{stage}-{processes}")
    script = ("mtbi/train.py", "--deepspeed", f"ds_configs/zero{stage}.json", "--recipe", str(recipe_path))
    output = launch(processes, *script, f"run_dir={run_dir}")
    steps = LINE.findall(output)[WARM_UP:]
    return statistics.median(int(ms) for ms, _ in steps) / 1000, statistics.median(int(tokens) for _, tokens in steps)


def bandwidth(processes: int) -> float:
    """The bandwidth of an all-reduce, in GB/s."""
    match = re.search(r"bus bandwidth ([\d.]+) GB/s", launch(processes, "launcher/preflight.py"))
    assert match
    return float(match[1])


def compare(recipe: Recipe, recipe_path: Path) -> list[dict[str, Any]]:
    """Measured and predicted step times for each ZeRO stage and number of processes."""
    sizes, cores, records = memory.sizes_of(recipe), os.cpu_count() or 1, []
    speeds = {processes: bandwidth(processes) for processes in PROCESSES if processes > 1}
    for stage, name in STAGES.items():
        alone = 0.0
        for processes in PROCESSES:
            seconds, tokens = train(recipe_path, stage, processes)
            alone = alone or tokens
            estimate = next(known for known in memory.estimates(recipe, sizes, processes) if known.name == name)
            gbps = speeds.get(processes, 1.0)
            speed = step_time.Speeds(alone * min(1.0, cores / processes), gbps, gbps)
            predicted = step_time.predict(recipe, sizes, estimate, processes, 8, speed).step
            records.append(
                {
                    "stage": name,
                    "processes": processes,
                    "gb_per_second": gbps,
                    "seconds": round(seconds, 3),
                    "predicted": round(predicted, 3),
                    "predicted_over_measured": round(predicted / seconds, 3),
                }
            )
    return records


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = parser.parse_args()
    build_collectives()
    with tempfile.TemporaryDirectory() as folder:
        recipe = world.make(Path(folder), options.utterances)
        recipe.plan.rows_per_step, recipe.plan.row_tokens = max(PROCESSES), 1024
        recipe.train.steps, recipe.train.log_every_steps, recipe.train.eval_every_steps = STEPS, 1, 0
        recipe_path = Path(folder) / "recipe.yaml"
        recipes.save(recipe, recipe_path)
        record = {**header("torch", "deepspeed"), "llm": world.LLM, "measured": compare(recipe, recipe_path)}
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
