"""Tiny random models and packed batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen3Config

from mtbi.batches.batch import Batch
from mtbi.llm import attention
from mtbi.model.adapter import build_adapter
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import AdapterConfig, LossConfig

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


def pack(rows: list[list[tuple[int, list[int]]]], tokens: int, seed: int = 5) -> Batch:
    """A batch whose groups are (samples of the clip, lengths of the branches): 2 tokens, the clip's frames, 1 token, branches.

    Half of each branch is its answer. The content of a group depends on its sizes alone.
    """
    ids, positions, group, branch = (torch.zeros(len(rows), tokens, dtype=torch.long) for _ in range(4))
    group -= 1
    waves: list[Tensor] = []
    slots, clips, frames, targets = [], [], [], []
    for row, groups in enumerate(rows):
        at = 0
        for number, (samples, branches) in enumerate(groups):
            generator = torch.Generator().manual_seed(seed + samples)
            waves.append(torch.randn(samples, generator=generator) * 0.3)
            count = GEOMETRY.frames(samples)
            prefix = 2 + count + 1
            head = torch.randint(3, VOCABULARY, (3,), generator=generator)
            ids[row, [at, at + 1, at + prefix - 1]] = head
            slots += [row * tokens + at + 2 + frame for frame in range(count)]
            clips += [len(waves) - 1] * count
            frames += list(range(count))
            positions[row, at : at + prefix] = torch.arange(prefix)
            group[row, at : at + prefix + sum(branches)] = number
            at += prefix
            for which, length in enumerate(branches):
                content = torch.Generator().manual_seed(1000 * samples + 10 * which + length)
                text = torch.randint(3, VOCABULARY, (length + 1,), generator=content)
                ids[row, at : at + length] = text[:-1]
                positions[row, at : at + length] = prefix + torch.arange(length)
                branch[row, at : at + length] = which + 1
                targets += [(row * tokens + at + i, int(text[i + 1]), which % 3) for i in range(length // 2, length)]
                at += length
    columns = torch.tensor(targets, dtype=torch.long).reshape(-1, 3).T
    teacher = torch.Generator().manual_seed(3)
    top = torch.stack([torch.randperm(VOCABULARY, generator=teacher)[:4] for _ in targets] or [torch.zeros(4).long()])
    logprobs = torch.randn(len(top), 4, generator=teacher).log_softmax(-1) - 0.2
    return Batch(
        token_ids=ids,
        position_ids=positions,
        group=group.int(),
        branch=branch.int(),
        waveforms=nn.utils.rnn.pad_sequence(waves or [torch.zeros(320)], batch_first=True),
        waveform_lengths=torch.tensor([len(wave) for wave in waves or [torch.zeros(320)]]),
        features=torch.zeros(0, 0, 0),
        feature_lengths=torch.zeros(0, dtype=torch.int64),
        audio_slot=torch.tensor(slots, dtype=torch.long),
        audio_clip=torch.tensor(clips, dtype=torch.long),
        audio_frame=torch.tensor(frames, dtype=torch.long),
        target_slot=columns[0],
        target_ids=columns[1],
        target_weight=torch.linspace(0.5, 1.5, columns.shape[1]),
        target_task=columns[2],
        teacher_ids=top[: columns.shape[1]],
        teacher_logprobs=logprobs[: columns.shape[1]],
    )


ROWS = [[(900, [6, 5, 4]), (320, [4])], [(2000, [8, 3]), (500, []), (640, [5, 5])]]


@pytest.fixture
def pack_rows() -> Callable[..., Batch]:
    """`pack_rows(rows, tokens)`: see `pack`."""
    return pack


@pytest.fixture
def packed() -> Batch:
    """Two rows of groups of several sizes, one without branches, with padding at the end."""
    return pack(ROWS, 48)
