"""`tools/bench_gpu.py` on the CPU with tiny models: that it is right, not how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools" / "bench_gpu.py"


def test_packed_gradients_are_the_padded_ones_and_every_case_runs(tmp_path: Path) -> None:
    small = ["--llm", "tiny", "--encoder", "tiny", "--seconds", "2", "--row-tokens", "256"]
    command = [sys.executable, str(TOOL), *small, "--out", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["gradient_difference"]) == {"mtbi_dense", "mtbi_varlen"}
    assert max(found["gradient_difference"].values()) < 1e-5
    assert len(found["cases"]) == 6
    assert all(case["dialogues_per_second"] > 0 for case in found["cases"].values())
