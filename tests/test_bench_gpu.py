"""`tools/bench_gpu.py` on the CPU with tiny models: its gradients are right, its cases run, and it goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import bench_cases
import pytest
import torch
from bench_baselines import heard, labels_of, plain_transformers

from mtbi.llm import attention

TOOL = Path(bench_cases.__file__).with_name("bench_gpu.py")
SETTING = bench_cases.Setting("tiny", "tiny", 2.0, 256, checkpointing=False)


def bench(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    small = ["--llm", "tiny", "--encoder", "tiny", "--seconds", "2", "--row-tokens", "256", "--out", str(out), *options]
    return subprocess.run([sys.executable, str(TOOL), *small], capture_output=True, text=True, check=False, timeout=400)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_same_command_goes_on_with_what_did_not_fit_into_the_time(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    first = bench(out, "--minutes", "0.4")
    assert first.returncode == 1
    assert "no time was left for" in first.stdout
    begun = json.loads(out.read_text())
    assert begun["machine"]["ceiling_tflops"] > 0
    second = bench(out, "--minutes", "0.4", "--limit", "1")
    assert "machine" not in second.stdout  # measured before
    assert "'error': 'took more than 1 s'" in second.stdout
    assert json.loads(out.read_text())["machine"] == begun["machine"]


def run_all() -> dict[tuple[str, str], Any]:
    return {place: job(SETTING) for place, job in bench_cases.jobs().items()}


@pytest.mark.slow
def test_every_case_runs_and_packed_gradients_are_the_padded_ones() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # joining torch.distributed sets RANK and others
        found = pool.submit(run_all).result()
    checks = {name: value for (section, name), value in found.items() if section == "gradient_difference"}
    assert set(checks) == {"mtbi_dense", "mtbi_varlen"}
    assert max(checks.values()) < 1e-5
    cases = [value for (section, _), value in found.items() if section == "cases"]
    assert len(cases) == 10
    assert all(case["dialogues_per_second"] > 0 for case in cases)
    assert all(0 < case["computed_tflops"] < case["tflops"] for case in cases)
    assert found["profile", "packed, K=4"][0]["share"] > 0.01


def test_the_gradient_through_8_bit_floats_is_near() -> None:
    assert 0.001 < bench_cases.fp8_gradient_difference(SETTING, attention.DENSE) < 0.2


def test_the_baseline_computes_the_same_loss() -> None:
    device, packed = torch.device("cpu"), SETTING.model(attention.DENSE)
    ((batch, _),) = bench_cases.batches_of(SETTING, bench_cases.Case(1, "sdpa", one_a_row=True), 1, device)
    plain = SETTING.model("sdpa")
    labels = labels_of(batch)
    counted = int((labels >= 0).sum())
    assert len(batch.target_ids) - len(batch.token_ids) <= counted <= len(batch.target_ids)
    with torch.no_grad():
        loss = plain.llm(inputs_embeds=heard(plain, batch), attention_mask=(batch.group >= 0).long(), labels=labels).loss
        out = packed(batch)
    assert float(loss) == pytest.approx(float(out.loss / out.weight), rel=0.02)  # the last token of each row is left out
    before = {name: value.detach().clone() for name, value in plain.trainable_parameters().items()}
    plain_transformers(plain)(batch)
    assert any(not torch.equal(value, before[name]) for name, value in plain.trainable_parameters().items())
