"""How fast is a training step on this GPU, and is it right? `python tools/bench_gpu.py [--llm llama-8b] [--out FILE.json]`

Needs nothing but this repository: models have the shapes of Whisper large-v3 and Llama 3.1 8B or Qwen3 8B, and random weights.
First it holds the adapter's gradient from packed rows against that from one dialogue a row, for every attention back end. Then
it times forward, backward and the optimizer's step for several numbers of tasks an utterance, packed and one dialogue a row,
packed with a divergence from a stored teacher in place of cross-entropy, packed with `model.llm_fp8` where the GPU has 8-bit
floats, and packed under DeepSpeed where that is installed. `tflops` counts 4 operations for each parameter and token of the
frozen LLM (forward and the gradient of activations; frozen weights have none of their own) and 2 for each of the encoder's and
frame. `computed_tflops`, of which `share_of_ceiling` is a share, leaves out what is not computed: embeddings are looked up, the
output layer and two thirds of the last layer see answers only. Neither counts attention, padding, or the second forward pass of
activation checkpointing.
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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig, Qwen3Config, WhisperConfig, WhisperFeatureExtractor
from transformers.models.llama import LlamaForCausalLM
from transformers.models.qwen3 import Qwen3ForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from mtbi import recipe as recipes  # noqa: E402
from mtbi import versions  # noqa: E402
from mtbi.answers.store import StoredAnswer  # noqa: E402
from mtbi.audio.codec import SAMPLE_RATE  # noqa: E402
from mtbi.batches.batch import Batch, build  # noqa: E402
from mtbi.batches.plan import Group, Plan, Row  # noqa: E402
from mtbi.llm import attention, fp8, kernels  # noqa: E402
from mtbi.llm.back_end import NAMES, choose  # noqa: E402
from mtbi.model.adapter import build_adapter  # noqa: E402
from mtbi.model.encoders.build import Whisper  # noqa: E402
from mtbi.model.flops import LLMSize, size  # noqa: E402
from mtbi.model.frame_counts import WHISPER_STAGES, FrameGeometry  # noqa: E402
from mtbi.model.losses import liger  # noqa: E402
from mtbi.model.speech_llm import SpeechLLM, compile_layers  # noqa: E402
from mtbi.recipe import LossConfig  # noqa: E402
from mtbi.shards.index import BRANCH, UTTERANCE, WORD, Index  # noqa: E402
from mtbi.shards.record import StoredUtterance  # noqa: E402

LLAMA_8B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
QWEN3_8B = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
LLMS: dict[str, tuple[Any, Any]] = {
    "llama-8b": (LlamaForCausalLM, LlamaConfig(**LLAMA_8B, max_position_embeddings=8192)),
    "qwen3-8b": (Qwen3ForCausalLM, Qwen3Config(**QWEN3_8B, max_position_embeddings=8192)),
    "tiny": (LlamaForCausalLM, LlamaConfig(**TINY, max_position_embeddings=8192)),
}
ENCODERS = {
    "large-v3": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
    "tiny": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
}
PREFIX, PROMPT, ANSWER, MOST_TASKS, TOP_K = 20, 16, 32, 8, 32
CROSS_ENTROPY, DIVERGENCE = LossConfig(ce=1.0, kl=0.0), LossConfig(ce=0.0, kl=1.0)
FACTS = {"fingerprint": "", "llm": "", "end_id": 2, "prompt_first": False, "encoded": "", "feature_width": 0}
WARM_UP, STEPS = 2, 6


@dataclass
class Work:
    """Utterances of one length with drawn tokens, and how they are packed."""

    utterances: int
    seconds: float
    vocabulary: int
    row_tokens: int

    def sample(self, number: int) -> StoredUtterance:
        """An utterance and its dialogues."""
        rng = np.random.default_rng(number)
        wave = (0.1 * rng.standard_normal(int(self.seconds * SAMPLE_RATE))).astype(np.float32)
        asked = [
            StoredAnswer(
                "task", 0, False, "", [], rng.integers(3, self.vocabulary, PROMPT).tolist(), "",
                rng.integers(3, self.vocabulary, ANSWER).tolist(), False, *self.teacher(rng),
            )
            for _ in range(MOST_TASKS)
        ]  # fmt: skip
        return StoredUtterance(str(number), "", "", wave, np.zeros((0, 2)), [], asked)

    def teacher(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens of an answer and their log-probabilities, (ANSWER, TOP_K) each."""
        ids = np.stack([rng.choice(self.vocabulary, TOP_K, replace=False) for _ in range(ANSWER)])
        return ids.astype(np.int32), np.log(rng.dirichlet(np.full(TOP_K + 1, 0.3), ANSWER)[:, :TOP_K] + 1e-6)

    def plan(self, tasks: int, one_a_row: bool) -> Plan:
        """Rows of packed groups, or of one dialogue each."""
        branches = np.zeros(self.utterances * MOST_TASKS, BRANCH)
        branches["prompt_tokens"], branches["answer_tokens"] = PROMPT, ANSWER
        table = np.zeros(self.utterances, UTTERANCE)
        table["samples"], table["branches"] = int(self.seconds * SAMPLE_RATE), MOST_TASKS
        table["first_branch"] = np.arange(self.utterances) * MOST_TASKS
        index = Index(
            **FACTS, prefix_ids=list(range(3, 3 + PREFIX)), top_k=TOP_K, tasks=["task"], shard_sizes=[self.utterances],
            utterances=table, branches=branches, words=np.zeros(0, WORD),
        )  # fmt: skip
        recipe = recipes.load("demo", ["interleave.share=0", f"plan.tasks_per_utterance={tasks}"])
        plan = replace(recipe.plan, row_tokens=self.row_tokens, utterances_per_row=int(one_a_row), rows_per_step=64)
        recipe = replace(recipe, plan=plan)
        return Plan(index, recipe, FrameGeometry(WHISPER_STAGES, stack=8, max_samples=30 * SAMPLE_RATE))

    def batches(self, tasks: int, one_a_row: bool) -> Iterator[tuple[Batch, int]]:
        """Micro-batches of about the same number of LLM positions either way, and the dialogues in them."""
        plan = self.plan(1 if one_a_row else tasks, one_a_row)
        single = PREFIX + int(plan.geometry.frames(int(self.seconds * SAMPLE_RATE))) + PROMPT + ANSWER
        rows_each = max(1, self.row_tokens // single) if one_a_row else 1
        for step in plan.steps():
            for start in range(0, len(step.rows) - rows_each + 1, rows_each):
                rows = step.rows[start : start + rows_each]
                yield build(rows, self.sample, plan), sum(len(group.branches) for row in rows for group in row.groups)


def build_model(llm: str, encoder: str, back_end: str, device: torch.device, dtype: torch.dtype) -> SpeechLLM:
    """A speech LLM of random weights, made on the device."""
    kind, config = LLMS[llm]
    attention.register()
    config._attn_implementation = back_end
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        text: Any = kind(config).requires_grad_(False)
        settings = WhisperConfig(num_mel_bins=128, **ENCODERS[encoder])
        whisper = WhisperEncoder(settings).requires_grad_(False)
    torch.set_default_dtype(before)
    filters = torch.as_tensor(WhisperFeatureExtractor(feature_size=128).mel_filters)
    recipe = recipes.load("demo", ["model.adapter.stack=8", "model.adapter.hidden=0"])
    adapter = build_adapter(recipe.model.adapter, settings.d_model, config.hidden_size, 0.02).to(device, dtype)
    return SpeechLLM(Whisper(whisper, filters.to(device)), adapter, text, CROSS_ENTROPY).to(device)


def gradient(model: SpeechLLM, batches: list[Batch], device: torch.device) -> torch.Tensor:
    """The adapter's gradient of the summed loss, float32, flat."""
    model.zero_grad()
    for batch in batches:
        model(batch.to(device)).loss.backward()
    return torch.cat([one.grad.float().flatten() for one in model.trainable_parameters().values()])


def check_gradients(work: Work, make: Callable[[str], SpeechLLM], device: torch.device, back_ends: list[str]) -> dict[str, Any]:
    """Relative difference of the gradient of packed rows from that of one dialogue a row with `dense`, by back end."""
    plan = work.plan(4, one_a_row=False)
    rows = next(plan.steps()).rows[:1]
    frames = int(plan.geometry.frames(int(work.seconds * SAMPLE_RATE)))
    single = [
        Row((Group(g.utterance, (b,), b"", PREFIX + frames + PROMPT + ANSWER - 1, g.samples, ANSWER, float(ANSWER)),))
        for row in rows
        for g in row.groups
        for b in g.branches
    ]
    model = make(attention.DENSE)
    expected = gradient(model, [build([row], work.sample, plan) for row in single], device)
    found = {}
    for back_end in back_ends:
        model.llm.set_attn_implementation(back_end)
        found[back_end] = attempted(
            lambda: float((gradient(model, [build(rows, work.sample, plan)], device) - expected).norm() / expected.norm())
        )
    return found


def check_fp8(work: Work, make: Callable[[str], SpeechLLM], device: torch.device, back_end: str) -> float:
    """Relative difference of the gradient of packed rows through an LLM of 8-bit floats from that through the LLM as it is."""
    plan = work.plan(4, one_a_row=False)
    batch = build(next(plan.steps()).rows[:1], work.sample, plan)
    model = make(back_end)
    expected = gradient(model, [batch], device)
    fp8.convert(model.llm, device)
    return float((gradient(model, [batch], device) - expected).norm() / expected.norm())


def ceiling(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of a large matrix product."""
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
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain(model: SpeechLLM) -> Callable[[Batch], None]:
    """A training step without DeepSpeed."""
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), 1e-4)

    def step(batch: Batch) -> None:
        out = model(batch)
        (out.loss / out.weight).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def under_deepspeed(model: SpeechLLM, stage: int, half: bool) -> Callable[[Batch], None]:
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


def digits(value: float) -> float:
    """Four of them."""
    return float(f"{value:.4g}")


def measure(
    step: Callable[[Batch], None], batches: list[tuple[Batch, int]], llm: LLMSize, encoder_size: int, device: torch.device
) -> dict:
    """Speed of a step over batches that are on the device already."""
    seconds, dialogues, tokens, answers, frames = [], 0, 0, 0, 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number, (batch, asked) in enumerate(batches):
        synchronise(device)
        began = time.perf_counter()
        step(batch)
        synchronise(device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
            frames += float(batch.waveform_lengths.sum()) / SAMPLE_RATE * 50
            dialogues, answers = dialogues + asked, answers + len(batch.target_ids)
            tokens += int((batch.group >= 0).sum())
    total, encoder = sum(seconds), 2 * encoder_size * frames
    return {
        "step_ms": round(1000 * statistics.median(seconds), 1),
        "dialogues_per_second": round(dialogues / total, 2),
        "tokens_per_second": round(tokens / total),
        "answer_tokens_per_second": round(answers / total),
        "tflops": digits((4 * llm.all * tokens + encoder) / total / 1e12),
        "computed_tflops": digits((llm.computed_flops(tokens, answers) + encoder) / total / 1e12),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if device.type == "cuda" else None,
    }


class Case(NamedTuple):
    """What is timed."""

    name: str
    tasks: int
    back_end: str
    one_a_row: bool = False
    stage: int | None = None  #: of ZeRO; None = without DeepSpeed
    rounded: bool = False  #: model.llm_fp8
    compiled: bool = False  #: model.compile
    loss: LossConfig = CROSS_ENTROPY


def cases(best: str, back_ends: list[str], gpu: bool, rounded: bool) -> Iterator[Case]:
    """All that is timed: the back end that `model.attention=auto` takes, and the others once."""
    for tasks in (1, 4, 8):
        yield Case(f"packed, K={tasks}", tasks, best)
    for other in back_ends:
        if other != best:
            yield Case(f"packed, K=4, {other}", 4, other)
    yield Case("packed, K=4, divergence", 4, best, loss=DIVERGENCE)
    if gpu and liger.installed():
        yield Case("packed, K=4, without Liger's kernel", 4, best, loss=replace(CROSS_ENTROPY, kernel="chunked"))
    if rounded:
        yield Case("packed, K=4, fp8", 4, best, rounded=True)
    if gpu:
        yield Case("packed, K=4, compiled", 4, best, compiled=True)
    yield Case("one dialogue a row", 1, best, one_a_row=True)
    if importlib.util.find_spec("deepspeed"):
        for stage in (0, 2, 3) if gpu else (2, 3):  # ZeRO-0 needs half precision
            yield Case(f"packed, K=4, ZeRO-{stage}", 4, best, stage=stage)


def attempted(call: Callable[[], Any]) -> Any:
    """What a call returns, or a note of its error: one that fails must not cost the others their time on a GPU."""
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def run_case(case: Case, work: Work, make: Callable[[str], SpeechLLM], device: torch.device) -> dict:
    """A case's speed."""
    model = make(case.back_end)
    model.head.config = case.loss
    llm, encoder_size = LLMSize.of(model.llm), size(model.encoder)
    if case.rounded:
        fp8.convert(model.llm, device)
    if case.compiled:
        compile_layers(model.llm)
    drawn = islice(work.batches(case.tasks, case.one_a_row), WARM_UP + STEPS)
    batches = [(batch.to(device), dialogues) for batch, dialogues in drawn]
    step = plain(model) if case.stage is None else under_deepspeed(model, case.stage, device.type == "cuda")
    return measure(step, batches, llm, encoder_size, device)


def main() -> int:
    """The command; the exit status is 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default="llama-8b")
    parser.add_argument("--encoder", choices=ENCODERS, default="large-v3")
    parser.add_argument("--seconds", type=float, default=10, help="of sound in an utterance (default: 10)")
    parser.add_argument("--row-tokens", type=int, default=4096)
    parser.add_argument("--checkpointing", action="store_true", help="recompute the LLM's activations in the backward pass")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if gpu else (torch.device("cpu"), torch.float32)
    work = Work(512, options.seconds, LLMS[options.llm][1].vocab_size, options.row_tokens)
    best = NAMES[choose("auto", device, dtype)[0]]
    # On a CPU FlexAttention has no backward pass.
    back_ends = [attention.DENSE, attention.FLASH, *([attention.FLEX] if gpu else [])]
    rounded = gpu and torch.cuda.get_device_capability() >= fp8.CAPABILITY

    def make(name: str) -> SpeechLLM:
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
        "gradient_difference": check_gradients(work, make, device, back_ends),
        "fp8_gradient_difference": attempted(partial(check_fp8, work, make, device, best)) if rounded else None,
        "cases": {},
    }
    print(json.dumps(record, indent=1), flush=True)
    for case in cases(best, back_ends, gpu, rounded):
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
        found = attempted(partial(run_case, case, work, make, device))
        if "tflops" in found:
            found["share_of_ceiling"] = round(found["computed_tflops"] / record["ceiling_tflops"], 3)
        record["cases"][case.name] = found
        print(f"{case.name}: {found}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int('"error"' in json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())
