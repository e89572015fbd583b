"""Tiny random models and packed batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen3Config

from mtbi.batches.batch import Batch, RowBuilder, clip_tensors, spoken_tensors, target_tensors, token_tensors
from mtbi.llm import attention
from mtbi.model.adapter import build_adapter
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import SpeechLLMModule, build_speech_llm
from mtbi.recipe import AdapterConfig, EncoderConfig, LossConfig, ModelConfig

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLMS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, sliding_window=9, layer_types=["sliding_attention", "full_attention"]),
    "gemma2": lambda: Gemma2Config(**SIZES),
}


class ToyEncoder(nn.Module):
    """Frames of 160 samples through one linear layer."""

    width = 12

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(160, self.width)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        waveforms = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % 160))
        return self.layer(waveforms.unflatten(1, (-1, 160))), -(-lengths // 160)


GEOMETRY = FrameGeometry(((1, 160),), stack=2)


def make_llm(kind: str, back_end: str) -> nn.Module:
    attention.register()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LLMS[kind](), attn_implementation=back_end).requires_grad_(False).eval()


@pytest.fixture
def make_model() -> Callable[..., SpeechLLMModule]:
    """`make_model(kind, back_end, loss)`: the same random weights for the same kind every time."""

    def make(kind: str = "llama", back_end: str = attention.DENSE, loss: LossConfig | None = None) -> SpeechLLMModule:
        llm = make_llm(kind, back_end)
        torch.manual_seed(1)
        adapter = build_adapter(AdapterConfig(stack=2), ToyEncoder.width, 32, 0.5)
        encoder = ToyEncoder().requires_grad_(False)
        return SpeechLLMModule(encoder, adapter, llm, loss or LossConfig(ce=1.0, kl=0.5, chunk=7), tasks=3)

    return make


def train_on(model: nn.Module, batch: Batch, steps: int, rate: float) -> list[float]:
    """The losses of some steps with AdamW on one batch, each before its step."""
    optimizer, losses = torch.optim.AdamW(model.trainable_parameters().values(), rate), []
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(batch)
        (out.loss / out.weight).backward()
        optimizer.step()
        losses.append(out.loss.item())
    return losses


def pack(rows: list[list[tuple[int, list[int]]]], tokens: int, seed: int = 5) -> Batch:
    """A batch whose groups are (samples of the clip, lengths of the branches): 2 tokens, the clip's frames, 1 token, branches.

    Half of each branch is its answer. The content of a group depends on its sizes alone. Training's row builder fills the rows.
    """
    plan: Any = None  # of no use for rows whose content is given
    clips: list[np.ndarray] = []
    spoken: list[np.ndarray] = []
    builders = [RowBuilder(plan, clips, spoken, base=row * tokens) for row in range(len(rows))]
    for builder, groups in zip(builders, rows, strict=True):
        for number, (samples, branches) in enumerate(groups):
            put_group(builder, number, samples, branches, seed)
    count = sum(len(ids) for builder in builders for ids, *_ in builder.targets)
    index = SimpleNamespace(encoded="", feature_width=0, top_k=4)
    clip_columns = clip_tensors(clips, index) | spoken_tensors(spoken)
    batch = Batch(**token_tensors(builders, tokens), **clip_columns, **target_tensors(builders, index))
    teacher = torch.Generator().manual_seed(3)
    top = [torch.randperm(VOCABULARY, generator=teacher)[:4] for _ in range(max(1, count))]
    logprobs = torch.randn(len(top), 4, generator=teacher).log_softmax(-1) - 0.2
    weight = torch.linspace(0.5, 1.5, count)
    return replace(batch, target_weight=weight, teacher_ids=torch.stack(top)[:count], teacher_logprobs=logprobs[:count])


def put_group(builder: RowBuilder, number: int, samples: int, branches: list[int], seed: int) -> None:
    """One group of random content; the tasks of its branches take turns."""
    generator = torch.Generator().manual_seed(seed + samples)
    wave = (torch.randn(samples, generator=generator) * 0.3).numpy()
    clip = builder.add_clip(wave, np.arange(3, 3 + min(4, GEOMETRY.frames(samples))))
    first, second, last = torch.randint(3, VOCABULARY, (3,), generator=generator).tolist()
    frames = GEOMETRY.frames(samples)
    builder.put([first, second], number, 0, 0)
    builder.put_sound(clip, 0, frames, number, 0, 2)
    builder.put([last], number, 0, 2 + frames)
    for branch, length in enumerate(branches):
        content = torch.Generator().manual_seed(1000 * samples + 10 * branch + length)
        text = torch.randint(3, VOCABULARY, (length + 1,), generator=content).tolist()
        start = builder.base + builder.used
        builder.put(text[:-1], number, branch + 1, 3 + frames)
        builder.targets.append((text[length // 2 + 1 :], start + length // 2, 1.0, branch % 3, 0))


ROWS = [[(900, [6, 5, 4]), (320, [4])], [(2000, [8, 3]), (500, []), (640, [5, 5])]]


@pytest.fixture
def pack_rows() -> Callable[..., Batch]:
    """`pack_rows(rows, tokens)`: see `pack`."""
    return pack


@pytest.fixture
def packed() -> Batch:
    """Two rows of groups of several sizes, one without branches, with padding at the end."""
    return pack(ROWS, 48)


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., SpeechLLMModule]) -> str:
    """A tiny Llama on disk."""
    make_model("llama").llm.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def heard(packed: Batch) -> Batch:
    """The packed batch, with audio frames that the demo encoder (a quarter as many) has too."""
    return replace(packed, audio_frame=packed.audio_frame // 5)


def build(folder: str, dtype: torch.dtype = torch.float32, **settings: Any) -> SpeechLLMModule:
    """A speech LLM of the tiny Llama in `folder` and the demo encoder; `settings` are those of `ModelConfig`."""
    config = ModelConfig(llm=folder, encoder=EncoderConfig("demo"), adapter=AdapterConfig(stack=2, hidden=16), **settings)
    torch.manual_seed(0)
    return build_speech_llm(config, LossConfig(ce=1.0, kl=1.0), dtype, torch.device("cpu"), tasks=3)
