"""The measurements of `tools/bench_gpu.py`. Each of them runs in a process of its own.

`tflops` counts 4 operations for each parameter and token of the frozen LLM: its forward pass, and the gradient of activations.
It counts 2 for each parameter and frame of the encoder. `computed_tflops` leaves out what is not computed: embeddings are
looked up, and the output layer and two thirds of the last layer see answers only. Neither counts attention, padding, or the
second forward pass of activation checkpointing.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from bench_baselines import adamw_step, online_divergence, plain_transformers
from bench_workload import ANSWER, CROSS_ENTROPY, LLMS, PREFIX, PROMPT, Workload, build_model

from mtbi import versions
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.batch import Batch, build
from mtbi.batches.plan import Group, Row
from mtbi.llm import attention, fp8, kernels
from mtbi.llm.back_end import NAMES, choose
from mtbi.llm.load import compile_layers
from mtbi.model.flops import LLMSize, size
from mtbi.model.losses import liger
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import LossConfig

DIVERGENCE = LossConfig(ce=0.0, kl=1.0)
WARM_UP, STEPS = 2, 6
PROFILED_STEPS, PROFILED_KERNELS = 2, 25


@dataclass(frozen=True)
class Setting:
    """What all cases share."""

    llm: str
    encoder: str
    seconds: float  #: of an utterance
    row_tokens: int
    checkpointing: bool  #: recompute the LLM's activations in the backward pass

    @property
    def workload(self) -> Workload:
        """The utterances."""
        return Workload(512, self.seconds, LLMS[self.llm][1].vocab_size, self.row_tokens)

    def model(self, back_end: str) -> SpeechLLMModule:
        """The model with random weights, on the device."""
        model = build_model(self.llm, self.encoder, back_end, find_device(), find_dtype())
        if self.checkpointing:
            model.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        return model.train()


def find_device() -> torch.device:
    """The GPU, or the processor where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_dtype() -> torch.dtype:
    """bf16 on a GPU, float32 on a processor."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def best_back_end() -> str:
    """What `model.attention=auto` takes here."""
    return NAMES[choose("auto", find_device(), find_dtype())[0]]


def back_ends() -> list[str]:
    """Those that can train here. On a CPU, FlexAttention has no backward pass."""
    return [attention.DENSE, attention.FLASH, *([attention.FLEX] if torch.cuda.is_available() else [])]


def gradient(model: SpeechLLMModule, batches: list[Batch], device: torch.device) -> torch.Tensor:
    """The adapter's gradient of the summed loss, float32 `(parameters,)`."""
    model.zero_grad()
    for batch in batches:
        model(batch.to(device)).loss.backward()
    return torch.cat([parameter.grad.float().flatten() for parameter in model.trainable_parameters().values()])


def gradient_difference(setting: Setting, back_end: str) -> float:
    """The relative difference between the gradients of packed rows and of one dialogue a row with `dense`."""
    device, workload = find_device(), setting.workload
    plan = workload.plan(4, one_a_row=False)
    rows = next(plan.steps()).rows[:1]
    frames = int(plan.geometry.frames(int(workload.seconds * SAMPLE_RATE)))
    single = [
        Row((Group(g.utterance, (b,), b"", PREFIX + frames + PROMPT + ANSWER - 1, g.samples, ANSWER, float(ANSWER)),))
        for row in rows
        for g in row.groups
        for b in g.branches
    ]
    model = setting.model(attention.DENSE)
    expected = gradient(model, [build([row], workload.sample, plan) for row in single], device)
    model.llm.set_attn_implementation(back_end)
    return float((gradient(model, [build(rows, workload.sample, plan)], device) - expected).norm() / expected.norm())


def fp8_gradient_difference(setting: Setting, back_end: str) -> float:
    """The relative difference between the gradients of packed rows with an LLM in 8-bit floats and with the LLM as it is."""
    device, workload = find_device(), setting.workload
    plan = workload.plan(4, one_a_row=False)
    batch = build(next(plan.steps()).rows[:1], workload.sample, plan)
    model = setting.model(back_end)
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

    def loss_of(batch: Batch) -> torch.Tensor:
        out = model(batch)
        return out.loss / out.weight

    return adamw_step(model, loss_of)


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

    tasks: int
    back_end: str
    one_a_row: bool = False
    stage: int | None = None  #: ZeRO's; None = without DeepSpeed
    fp8: bool = False  #: model.llm_fp8
    compiled: bool = False  #: model.compile
    loss: LossConfig = CROSS_ENTROPY
    baseline: Callable[[SpeechLLMModule], Callable[[Batch], None]] | None = None  #: a step without this package's rows and loss


def run_case(setting: Setting, case: Case) -> dict[str, Any]:
    """Build the model of a case and time it."""
    device, model = find_device(), setting.model(case.back_end)
    model.head.config = case.loss
    if case.fp8:
        fp8.convert(model.llm, device)
    if case.compiled:
        compile_layers(model.llm)
    llm, encoder_size = LLMSize.of(model.llm), size(model.encoder)
    step = step_of(case, model, device)
    return measure(step, batches_of(setting, case, WARM_UP + STEPS, device), llm, encoder_size, device)


def step_of(case: Case, model: SpeechLLMModule, device: torch.device) -> Callable[[Batch], None]:
    """The training step of a case."""
    if case.baseline:
        return case.baseline(model)
    return without_deepspeed(model) if case.stage is None else under_deepspeed(model, case.stage, device.type == "cuda")


def batches_of(setting: Setting, case: Case, number: int, device: torch.device) -> list[tuple[Batch, int]]:
    """Micro-batches on the device, with their numbers of dialogues."""
    drawn = islice(setting.workload.batches(case.tasks, case.one_a_row), number)
    return [(batch.to(device), dialogues) for batch, dialogues in drawn]


def profile(setting: Setting, case: Case) -> list[dict[str, Any]]:
    """The kernels (on a CPU: the operators) that take most of a step's time, with their share of it. Prints PyTorch's table."""
    device, model = find_device(), setting.model(case.back_end)
    step, batches = step_of(case, model, device), batches_of(setting, case, WARM_UP + PROFILED_STEPS, device)
    for batch, _ in batches[:WARM_UP]:
        step(batch)
    synchronise(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=activities) as profiler:
        for batch, _ in batches[WARM_UP:]:
            step(batch)
        synchronise(device)
    column = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, column))
    total = sum(getattr(event, column) for event in events)
    print(profiler.key_averages().table(sort_by=column, row_limit=PROFILED_KERNELS, max_name_column_width=70), flush=True)
    return [
        {
            "name": event.key[:120],
            "calls": event.count // PROFILED_STEPS,
            "ms": round(getattr(event, column) / 1000 / PROFILED_STEPS, 3),
            "share": round(getattr(event, column) / max(total, 1e-9), 4),
        }
        for event in events[:PROFILED_KERNELS]
    ]


def machine() -> dict[str, Any]:
    """What the cases run on, and the speed of a large matrix product there."""
    device, gpu = find_device(), torch.cuda.is_available()
    names = ("torch", "transformers", "deepspeed", "flash-attn", "liger-kernel", "triton")
    return {
        "device": torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} cores",
        "versions": {name: versions.installed(name) for name in names},
        "commit": versions.commit(),
        "flash_kernels": kernels.choose_kernels(device) if gpu else None,
        "back_end": best_back_end(),
        "ceiling_tflops": round(ceiling(device, find_dtype(), 8192 if gpu else 1024), 2),
    }


Job = Callable[[Setting], Any]


def jobs() -> dict[tuple[str, str], Job]:
    """Every measurement by its place in the report (section, name), the most important first."""
    gpu, best = torch.cuda.is_available(), best_back_end()
    has_fp8 = gpu and torch.cuda.get_device_capability() >= fp8.CAPABILITY
    timed: dict[str, Case] = {
        "packed, K=4": Case(4, best),
        "plain transformers": Case(1, "sdpa", one_a_row=True, baseline=plain_transformers),
        "one dialogue a row": Case(1, best, one_a_row=True),
        "packed, K=1": Case(1, best),
        "packed, K=8": Case(8, best),
        "packed, K=4, divergence": Case(4, best, loss=DIVERGENCE),
        "plain transformers, online divergence": Case(1, "sdpa", one_a_row=True, baseline=online_divergence),
    }
    if importlib.util.find_spec("deepspeed"):
        stages = (0, 2, 3) if gpu else (2, 3)  # ZeRO-0 needs half precision
        timed |= {f"packed, K=4, ZeRO-{stage}": Case(4, best, stage=stage) for stage in stages}
    timed |= {f"packed, K=4, {other}": Case(4, other) for other in back_ends() if other != best}
    if gpu:
        timed["packed, K=4, compiled"] = Case(4, best, compiled=True)
    if gpu and liger.installed():
        timed["packed, K=4, without Liger's kernel"] = Case(4, best, loss=replace(CROSS_ENTROPY, kernel="chunked"))
    if has_fp8:
        timed["packed, K=4, fp8"] = Case(4, best, fp8=True)
    first, *others = ((("cases", name), partial(run_case, case=case)) for name, case in timed.items())
    checks: list[tuple[tuple[str, str], Job]] = [
        (("gradient_difference", name), partial(gradient_difference, back_end=name)) for name in back_ends()
    ]
    profiled: tuple[tuple[str, str], Job] = ("profile", "packed, K=4"), partial(profile, case=timed["packed, K=4"])
    last: list[tuple[tuple[str, str], Job]] = (
        [(("gradient_difference", "fp8"), partial(fp8_gradient_difference, back_end=best))] if has_fp8 else []
    )
    return dict([(("machine", ""), lambda setting: machine()), first, *checks, profiled, *others, *last])
