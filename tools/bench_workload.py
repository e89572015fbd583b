"""The workload of `tools/bench_gpu.py`: models with random weights, and batches of utterances with random tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, Qwen3Config, WhisperConfig, WhisperFeatureExtractor
from transformers.models.llama import LlamaForCausalLM
from transformers.models.qwen3 import Qwen3ForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mtbi import recipe as recipes
from mtbi.answers.store import StoredAnswer
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.batch import Batch, build
from mtbi.batches.plan import Plan
from mtbi.llm import attention
from mtbi.model.adapter import build_adapter
from mtbi.model.encoders.whisper import WHISPER_STAGES, Whisper
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import LossConfig
from mtbi.shards.index import BRANCH, UTTERANCE, WORD, Index
from mtbi.shards.record import StoredUtterance

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
CROSS_ENTROPY = LossConfig(ce=1.0, kl=0.0)
FACTS = {"fingerprint": "", "llm": "", "end_id": 2, "prompt_first": False, "encoded": "", "feature_width": 0}


@dataclass
class Workload:
    """Utterances of one length with random tokens, and their packing."""

    utterances: int
    seconds: float
    vocabulary: int
    row_tokens: int

    def sample(self, number: int) -> StoredUtterance:
        """An utterance of random sound, and MOST_TASKS dialogues about it."""
        rng = np.random.default_rng(number)
        wave = (0.1 * rng.standard_normal(int(self.seconds * SAMPLE_RATE))).astype(np.float32)
        behaviours = [
            StoredAnswer(
                "", rng.integers(3, self.vocabulary, PROMPT).tolist(), "", rng.integers(3, self.vocabulary, ANSWER).tolist(),
                False, *self.teacher(rng), task="task", wording=0, heldout=False, before_speech_ids=[],
            )
            for _ in range(MOST_TASKS)
        ]  # fmt: skip
        return StoredUtterance(str(number), "", "", wave, np.zeros((0, 2)), [], behaviours)

    def teacher(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens of an answer and their log-probabilities, `(ANSWER, TOP_K)` each."""
        ids = np.stack([rng.choice(self.vocabulary, TOP_K, replace=False) for _ in range(ANSWER)])
        return ids.astype(np.int32), np.log(rng.dirichlet(np.full(TOP_K + 1, 0.3), ANSWER)[:, :TOP_K] + 1e-6)

    def plan(self, tasks: int, one_a_row: bool) -> Plan:
        """Rows of packed groups; with `one_a_row`, rows of one dialogue each."""
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
        """Micro-batches and their numbers of dialogues. Packed or not, they have about the same number of LLM positions."""
        plan = self.plan(1 if one_a_row else tasks, one_a_row)
        single = PREFIX + int(plan.geometry.frames(int(self.seconds * SAMPLE_RATE))) + PROMPT + ANSWER
        rows_each = max(1, self.row_tokens // single) if one_a_row else 1
        for step in plan.steps():
            for start in range(0, len(step.rows) - rows_each + 1, rows_each):
                rows = step.rows[start : start + rows_each]
                yield build(rows, self.sample, plan), sum(len(group.branches) for row in rows for group in row.groups)


def build_model(llm: str, encoder: str, back_end: str, device: torch.device, dtype: torch.dtype) -> SpeechLLMModule:
    """A speech LLM with random weights, made on `device`."""
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
    return SpeechLLMModule(Whisper(whisper, filters.to(device)), adapter, text, CROSS_ENTROPY).to(device)
