"""Measures the speed of a training step on this GPU, and checks its gradients.

    python tools/bench_gpu.py --out FILE.json [--llm llama-8b] [--minutes 8]

Needs nothing but this repository. Models have the shapes of Whisper large-v3 and of Llama 3.1 8B or Qwen3 8B, with random
weights. It times forward pass, backward pass and the optimizer's step of

- packed rows with several numbers of tasks an utterance, back ends, losses and ZeRO stages;
- one dialogue a row, and two baselines in plain transformers (`tools/bench_baselines.py`).

For every attention back end, the adapter's gradient from packed rows is compared with that from one dialogue a row. One case is
profiled. `share_of_ceiling` is a case's share of the speed of a large matrix product on the same machine.

Each measurement is a process of its own with a time limit, the most important first. FILE.json is written after each of them.
The same command goes on with what is missing. What does not fit into the minutes is listed at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools")]

from bench_cases import Setting, jobs  # noqa: E402
from bench_workload import ENCODERS, LLMS  # noqa: E402

from mtbi import files  # noqa: E402

LEAST_SECONDS = 15.0  #: a measurement is not begun with less time


def parse_arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default="llama-8b")
    parser.add_argument("--encoder", choices=ENCODERS, default="large-v3")
    parser.add_argument("--seconds", type=float, default=10, help="length of an utterance (default: 10)")
    parser.add_argument("--row-tokens", type=int, default=4096)
    parser.add_argument("--checkpointing", action="store_true", help="recompute the LLM's activations in the backward pass")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the command goes on with a file of its own")
    parser.add_argument("--minutes", type=float, default=8, help="no measurement ends later than this (default: 8)")
    parser.add_argument("--limit", type=float, default=150, help="seconds that one measurement may take (default: 150)")
    parser.add_argument("--only", nargs=2, metavar=("SECTION", "NAME"), help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args()


def main() -> int:
    """Run the command; returns 1 if a measurement failed or did not fit into the time."""
    options = parse_arguments()
    setting = Setting(options.llm, options.encoder, options.seconds, options.row_tokens, options.checkpointing)
    if options.only:
        options.out.write_text(json.dumps(jobs()[tuple(options.only)](setting)))
        return 0
    record = read_record(options.out, setting)
    began = time.monotonic()
    for section, name in jobs():
        if done(record, section, name):
            continue
        left = options.minutes * 60 - (time.monotonic() - began)
        if left < LEAST_SECONDS:
            record["not_run"].append(f"{section}: {name}")
            continue
        put(record, section, name, measured(section, name, min(options.limit, left)))
        files.write_text(options.out, json.dumps(record, indent=1) + "\n")
        print(f"{section}: {name}: {shown(record, section, name)}", flush=True)
    files.write_text(options.out, json.dumps(record, indent=1) + "\n")
    if record["not_run"]:
        print(f"no time was left for {'; '.join(record['not_run'])}. The same command goes on with them.", flush=True)
    return int('"error"' in json.dumps(record) or bool(record["not_run"]))


def read_record(path: Path, setting: Setting) -> dict[str, Any]:
    """The report so far, or a new one where the file is missing or of another setting."""
    settings = asdict(setting)
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("setting") == settings:
            return record | {"not_run": []}
        print(f"{path}: of another setting; it is written anew", flush=True)
    command = " ".join(["python", *sys.argv])
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "command": command, "setting": settings, "machine": {}, "gradient_difference": {}, "cases": {}} | {
        "profile": {},
        "not_run": [],
    }


def measured(section: str, name: str, seconds: float) -> Any:
    """The result of a measurement in a process of its own, or a record of its error."""
    with tempfile.TemporaryDirectory(prefix="mtbi-bench-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--out", str(result), "--only", section, name]
        try:
            subprocess.run(command, check=True, timeout=seconds)
            return json.loads(result.read_text(encoding="utf-8"))
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {seconds:.0f} s"}
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}


def done(record: dict[str, Any], section: str, name: str) -> bool:
    """Whether a measurement has a result."""
    result = record[section] if section == "machine" else record[section].get(name)
    return bool(result) and not (isinstance(result, dict) and "error" in result)


def put(record: dict[str, Any], section: str, name: str, result: Any) -> None:
    """Write a result into the report. A case gets its share of the ceiling."""
    if section == "machine":
        record["machine"] = result
        return
    if section == "cases" and "computed_tflops" in result and "ceiling_tflops" in record["machine"]:
        result["share_of_ceiling"] = round(result["computed_tflops"] / record["machine"]["ceiling_tflops"], 3)
    record[section][name] = result


def shown(record: dict[str, Any], section: str, name: str) -> Any:
    """A result as it is printed. The profile's table is printed by its own process."""
    result = record[section] if section == "machine" else record[section][name]
    return f"{len(result)} kernels" if section == "profile" and isinstance(result, list) else result


if __name__ == "__main__":
    sys.exit(main())
