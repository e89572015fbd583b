"""Which back end an LLM gets for the longest dialogue, and which LLMs and lengths are refused before a model is read."""

from __future__ import annotations

import families
import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from mtbi.errors import UserError
from mtbi.llm import back_end
from mtbi.llm.back_end import LLMShape

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HALF, FULL = torch.bfloat16, torch.float32


def shape(name: str, **changes: object) -> LLMShape:
    config = families.RIGHT[name]()
    for field, value in changes.items():
        setattr(config.get_text_config(), field, value)
    return LLMShape.of(config)


@pytest.mark.parametrize(
    ("attention", "device", "dtype", "llm", "longest", "chosen"),
    [
        ("auto", CPU, HALF, "llama", 100, "dense"),
        ("auto", GPU, HALF, "llama", 100, "flash"),
        ("auto", GPU, HALF, "llama", None, "flash"),
        ("auto", GPU, FULL, "llama", 100, "dense"),
        ("flex", GPU, FULL, "llama", 100, "flex"),
        ("auto", GPU, HALF, "mistral", 4, "flash"),  # a window of 4 hides nothing of a dialogue of 4
        ("auto", GPU, HALF, "mistral", 5, "flex"),
        ("auto", GPU, HALF, "mistral", None, "flex"),
        ("auto", CPU, FULL, "mistral", 5, "dense"),
        ("auto", GPU, HALF, "gemma3 with vision", 5, "flex"),
        ("auto", GPU, HALF, "gpt_oss", 5, "flex"),
        ("flash", CPU, FULL, "gpt_oss", 4, "flash"),
        ("auto", GPU, HALF, "deepseek_v3", 100, "flex"),
    ],
)
def test_auto_takes_what_can_compute_the_llm(attention, device, dtype, llm, longest, chosen) -> None:
    assert back_end.choose(attention, device, dtype, shape(llm), longest)[0] == chosen


def test_heads_that_the_kernels_do_not_take() -> None:
    assert back_end.choose("auto", GPU, HALF, shape("llama", head_dim=512), 9) == (
        "flex",
        "heads of 512 numbers (llama) are not what its kernels take",
    )
    assert back_end.choose("auto", GPU, HALF, shape("llama", head_dim=12), 9)[0] == "flex"


@pytest.mark.parametrize(
    ("device", "dtype", "llm", "sentence"),
    [
        (GPU, FULL, "llama", "needs precision=bf16 on a GPU"),
        (GPU, HALF, "mistral", r"the sliding window of mistral \(4 tokens\) is shorter than the longest dialogue \(5 tokens\)"),
        (CPU, FULL, "gemma3 with vision", r"the sliding window of gemma3_text \(4 tokens\)"),
        (GPU, HALF, "deepseek_v2", "the value heads of deepseek_v2 have 8 numbers, its query heads 16"),
    ],
)
def test_flash_is_refused_before_training_where_it_would_stop_in_it(device, dtype, llm, sentence) -> None:
    with pytest.raises(UserError, match=f"model.attention=flash.*{sentence}"):
        back_end.choose("flash", device, dtype, shape(llm), 5)


def test_windows_that_are_not_used_do_not_count() -> None:
    assert shape("qwen2", layer_types=["full_attention"] * 2).window is None
    assert shape("qwen2", use_sliding_window=False).window is None
    assert shape("qwen2").window == 4
    assert shape("mistral").window == 4
    assert shape("llama").window is None


def test_heads_are_those_of_the_model() -> None:
    latent, composite = shape("deepseek_v3"), shape("gemma3 with vision")
    assert (latent.heads, latent.key_heads, latent.size, latent.value_size) == (4, 4, 16, 8)
    assert (composite.name, composite.heads, composite.key_heads, composite.size) == ("gemma3_text", 4, 2, 8)


LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (LlamaConfig(**families.SIZES, max_position_embeddings=64), "llama knows 64 positions, .* takes up to 65"),
        (families.RIGHT["llama4"](), "llama4_text attends inside chunks of 64 tokens.* takes up to 65"),
        (
            Phi3Config(**families.SIZES, rope_scaling=LONG, original_max_position_embeddings=64),
            "phi3 turns all positions of a row otherwise once one is beyond 64",
        ),
    ],
)
def test_dialogues_longer_than_the_llm_can_take_are_refused(config, sentence) -> None:
    back_end.check_lengths(LLMShape.of(config), 64)
    with pytest.raises(UserError, match=sentence):
        back_end.check_lengths(LLMShape.of(config), 65)
