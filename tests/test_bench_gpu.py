"""`tools/bench_gpu.py` on the CPU with tiny models: its gradients are right and every case runs."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtbi.llm import attention
from mtbi.model.speech_llm import SpeechLLMModule

TOOL = Path(__file__).parents[1] / "tools" / "bench_gpu.py"


@pytest.mark.slow
def test_packed_gradients_are_the_padded_ones_and_every_case_runs(tmp_path: Path) -> None:
    small = ["--llm", "tiny", "--encoder", "tiny", "--seconds", "2", "--row-tokens", "256"]
    command = [sys.executable, str(TOOL), *small, "--out", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["gradient_difference"]) == {"mtbi_dense", "mtbi_varlen"}
    assert max(found["gradient_difference"].values()) < 1e-5
    assert len(found["cases"]) == 8
    assert all(case["dialogues_per_second"] > 0 for case in found["cases"].values())
    assert all(0 < case["computed_tflops"] < case["tflops"] for case in found["cases"].values())


def test_the_gradient_through_8_bit_floats_is_near() -> None:
    tool, cpu = runpy.run_path(str(TOOL)), torch.device("cpu")

    def make(name: str) -> SpeechLLMModule:
        return tool["build_model"]("tiny", "tiny", name, cpu, torch.float32)

    assert 0.001 < tool["check_fp8"](tool["Workload"](64, 2.0, 512, 256), make, cpu, attention.DENSE) < 0.2
