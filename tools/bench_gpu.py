"""Measures the speed of a training step on this GPU, and checks its gradients.

    python tools/bench_gpu.py [--llm llama-8b] [--out FILE.json]

Needs nothing but this repository. Models have the shapes of Whisper large-v3 and of Llama 3.1 8B or Qwen3 8B, with random
weights. For every attention back end, the adapter's gradient from packed rows is compared with that from one dialogue a row.
Then forward pass, backward pass and the optimizer's step are timed for these cases:

- packed rows with several numbers of tasks an utterance, and one dialogue a row;
- packed rows with a divergence from a stored teacher instead of cross-entropy;
- packed rows with `model.llm_fp8` (on a GPU with 8-bit floats), with `model.compile`, and under DeepSpeed if it is installed.

`tflops` counts 4 operations for each parameter and token of the frozen LLM: its forward pass, and the gradient of activations.
It counts 2 for each parameter and frame of the encoder. `computed_tflops` leaves out what is not computed: embeddings are
looked up, and the output layer and two thirds of the last layer see answers only. `share_of_ceiling` is its share of a large
matrix product's speed. Neither counts attention, padding, or the second forward pass of activation checkpointing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools")]

from bench_workload import ANSWER, CROSS_ENTROPY, ENCODERS, LLMS, PREFIX, PROMPT, Workload, build_model  # noqa: E402

from mtbi import versions  # noqa: E402
from mtbi.audio.codec import SAMPLE_RATE  # noqa: E402
from mtbi.batches.batch import Batch, build  # noqa: E402
from mtbi.batches.plan import Group, Row  # noqa: E402
from mtbi.llm import attention, fp8, kernels  # noqa: E402
from mtbi.llm.back_end import NAMES, choose  # noqa: E402
from mtbi.llm.load import compile_layers  # noqa: E402
from mtbi.model.flops import LLMSize, size  # noqa: E402
from mtbi.model.losses import liger  # noqa: E402
from mtbi.model.speech_llm import SpeechLLMModule  # noqa: E402
from mtbi.recipe import LossConfig  # noqa: E402

DIVERGENCE = LossConfig(ce=0.0, kl=1.0)
WARM_UP, STEPS = 2, 6


def gradient(model: SpeechLLMModule, batches: list[Batch], device: torch.device) -> torch.Tensor:
    """The adapter's gradient of the summed loss, float32 `(parameters,)`."""
    model.zero_grad()
    for batch in batches:
        model(batch.to(device)).loss.backward()
    return torch.cat([parameter.grad.float().flatten() for parameter in model.trainable_parameters().values()])


def check_gradients(
    workload: Workload, make: Callable[[str], SpeechLLMModule], device: torch.device, back_ends: list[str]
) -> dict[str, Any]:
    """By back end: the relative difference between the gradients of packed rows and of one dialogue a row with `dense`."""
    plan = workload.plan(4, one_a_row=False)
    rows = next(plan.steps()).rows[:1]
    frames = int(plan.geometry.frames(int(workload.seconds * SAMPLE_RATE)))
    single = [
        Row((Group(g.utterance, (b,), b"", PREFIX + frames + PROMPT + ANSWER - 1, g.samples, ANSWER, float(ANSWER)),))
        for row in rows
        for g in row.groups
        for b in g.branches
    ]
    model = make(attention.DENSE)
    expected = gradient(model, [build([row], workload.sample, plan) for row in single], device)
    differences = {}
    for back_end in back_ends:
        model.llm.set_attn_implementation(back_end)
        differences[back_end] = attempted(
            lambda: float((gradient(model, [build(rows, workload.sample, plan)], device) - expected).norm() / expected.norm())
        )
    return differences


def check_fp8(workload: Workload, make: Callable[[str], SpeechLLMModule], device: torch.device, back_end: str) -> float:
    """The relative difference between the gradients of packed rows with an LLM in 8-bit floats and with the LLM as it is."""
    plan = workload.plan(4, one_a_row=False)
    batch = build(next(plan.steps()).rows[:1], workload.sample, plan)
    model = make(back_end)
    expected = gradient(model, [batch], device)
    fp8.convert(model.llm, device)
    return float((gradient(model, [batch], device) - expected).norm() / expected.norm())


def ceiling(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of the product of two matrices of `size` rows and columns."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        synchronise(device)
        began = time.perf_counter()
        left @ right
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e12


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def without_deepspeed(model: SpeechLLMModule) -> Callable[[Batch], None]:
    """A training step without DeepSpeed."""
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), 1e-4)

    def step(batch: Batch) -> None:
        out = model(batch)
        (out.loss / out.weight).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def under_deepspeed(model: SpeechLLMModule, stage: int, half: bool) -> Callable[[Batch], None]:
    """A training step with ZeRO on one process."""
    import deepspeed

    from launcher.distributed import start_distributed
    from launcher.ranks import find_ranks
    from mtbi.engine import zero3

    start_distributed(find_ranks())
    if stage == 3:
        zero3.prepare(model)
    config = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}, "bf16": {"enabled": half},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.trainable_parameters().values()), config=config)
    if stage == 3:
        zero3.use_frozen_linear()

    def step(batch: Batch) -> None:
        out = engine(batch)
        engine.backward(out.loss / out.weight)
        engine.step()

    return step


def rounded(value: float) -> float:
    """`value` with four significant digits."""
    return float(f"{value:.4g}")


def measure(
    step: Callable[[Batch], None], batches: list[tuple[Batch, int]], llm: LLMSize, encoder_size: int, device: torch.device
) -> dict:
    """The speed of a step over batches that are on the device already; the first WARM_UP are not counted."""
    seconds, dialogues, tokens, answers, frames = [], 0, 0, 0, 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number, (batch, dialogue_count) in enumerate(batches):
        synchronise(device)
        began = time.perf_counter()
        step(batch)
        synchronise(device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
            frames += float(batch.waveform_lengths.sum()) / SAMPLE_RATE * 50
            dialogues, answers = dialogues + dialogue_count, answers + len(batch.target_ids)
            tokens += int((batch.group >= 0).sum())
    total, encoder = sum(seconds), 2 * encoder_size * frames
    return {
        "step_ms": round(1000 * statistics.median(seconds), 1),
        "dialogues_per_second": round(dialogues / total, 2),
        "tokens_per_second": round(tokens / total),
        "answer_tokens_per_second": round(answers / total),
        "tflops": rounded((4 * llm.all * tokens + encoder) / total / 1e12),
        "computed_tflops": rounded((llm.computed_flops(tokens, answers) + encoder) / total / 1e12),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if device.type == "cuda" else None,
    }


class Case(NamedTuple):
    """One setting that is timed."""

    name: str
    tasks: int
    back_end: str
    one_a_row: bool = False
    stage: int | None = None  #: ZeRO's; None = without DeepSpeed
    fp8: bool = False  #: model.llm_fp8
    compiled: bool = False  #: model.compile
    loss: LossConfig = CROSS_ENTROPY


def cases(best: str, back_ends: list[str], gpu: bool, has_fp8: bool) -> Iterator[Case]:
    """Everything that is timed, with `best`, the back end that `model.attention=auto` takes; the other back ends once."""
    for tasks in (1, 4, 8):
        yield Case(f"packed, K={tasks}", tasks, best)
    for other in back_ends:
        if other != best:
            yield Case(f"packed, K=4, {other}", 4, other)
    yield Case("packed, K=4, divergence", 4, best, loss=DIVERGENCE)
    if gpu and liger.installed():
        yield Case("packed, K=4, without Liger's kernel", 4, best, loss=replace(CROSS_ENTROPY, kernel="chunked"))
    if has_fp8:
        yield Case("packed, K=4, fp8", 4, best, fp8=True)
    if gpu:
        yield Case("packed, K=4, compiled", 4, best, compiled=True)
    yield Case("one dialogue a row", 1, best, one_a_row=True)
    if importlib.util.find_spec("deepspeed"):
        for stage in (0, 2, 3) if gpu else (2, 3):  # ZeRO-0 needs half precision
            yield Case(f"packed, K=4, ZeRO-{stage}", 4, best, stage=stage)


def attempted(call: Callable[[], Any]) -> Any:
    """The result of `call`, or a record of its error, so that one failed case does not cost the others their time on a GPU."""
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def run_case(case: Case, workload: Workload, make: Callable[[str], SpeechLLMModule], device: torch.device) -> dict:
    """Build the model of a case and time it."""
    model = make(case.back_end)
    model.head.config = case.loss
    llm, encoder_size = LLMSize.of(model.llm), size(model.encoder)
    if case.fp8:
        fp8.convert(model.llm, device)
    if case.compiled:
        compile_layers(model.llm)
    drawn = islice(workload.batches(case.tasks, case.one_a_row), WARM_UP + STEPS)
    batches = [(batch.to(device), dialogues) for batch, dialogues in drawn]
    step = without_deepspeed(model) if case.stage is None else under_deepspeed(model, case.stage, device.type == "cuda")
    return measure(step, batches, llm, encoder_size, device)


def main() -> int:
    """Run the command; returns 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default="llama-8b")
    parser.add_argument("--encoder", choices=ENCODERS, default="large-v3")
    parser.add_argument("--seconds", type=float, default=10, help="length of an utterance (default: 10)")
    parser.add_argument("--row-tokens", type=int, default=4096)
    parser.add_argument("--checkpointing", action="store_true", help="recompute the LLM's activations in the backward pass")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if gpu else (torch.device("cpu"), torch.float32)
    workload = Workload(512, options.seconds, LLMS[options.llm][1].vocab_size, options.row_tokens)
    best = NAMES[choose("auto", device, dtype)[0]]
    # On a CPU FlexAttention has no backward pass.
    back_ends = [attention.DENSE, attention.FLASH, *([attention.FLEX] if gpu else [])]
    has_fp8 = gpu and torch.cuda.get_device_capability() >= fp8.CAPABILITY

    def make(name: str) -> SpeechLLMModule:
        model = build_model(options.llm, options.encoder, name, device, dtype)
        if options.checkpointing:
            model.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        return model.train()

    record: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} cores",
        "versions": {
            name: versions.installed(name) for name in ("torch", "transformers", "deepspeed", "flash-attn", "liger-kernel")
        },
        "commit": versions.commit(),
        "flash_kernels": kernels.choose_kernels(device) if gpu else None,
        "ceiling_tflops": round(ceiling(device, dtype, 8192 if gpu else 1024), 2),
        "gradient_difference": check_gradients(workload, make, device, back_ends),
        "fp8_gradient_difference": attempted(partial(check_fp8, workload, make, device, best)) if has_fp8 else None,
        "cases": {},
    }
    print(json.dumps(record, indent=1), flush=True)
    for case in cases(best, back_ends, gpu, has_fp8):
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
        result = attempted(partial(run_case, case, workload, make, device))
        if "tflops" in result:
            result["share_of_ceiling"] = round(result["computed_tflops"] / record["ceiling_tflops"], 3)
        record["cases"][case.name] = result
        print(f"{case.name}: {result}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int('"error"' in json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())
