from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from transformers import LlamaConfig, WhisperConfig

from mtbi import recipe as recipes
from mtbi.engine import memory, pace
from mtbi.engine.memory import Estimate
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import Recipe


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The shipped 8B recipe with models of the same shape, as configurations only."""
    folder = tmp_path_factory.mktemp("models")
    llama = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    llama.save_pretrained(folder / "llama")
    WhisperConfig(
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_layers=1,
        decoder_attention_heads=20,
    ).save_pretrained(folder / "whisper")
    fields = [f"model.llm={folder}/llama", f"model.encoder.path={folder}/whisper"]
    return recipes.load("whisper-large-v3_llama-3.1-8b", fields)


def by_name(recipe: Recipe, gpus: int) -> dict[str, Estimate]:
    return {one.name: one for one in memory.estimates(recipe, memory.sizes_of(recipe), gpus)}


def test_sizes_are_those_of_the_built_model() -> None:
    recipe = recipes.load("demo", ["model.llm_lora.rank=4"])
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))
    sizes = memory.sizes_of(recipe)
    assert sizes.trainable == sum(p.numel() for p in model.trainable_parameters().values())
    assert sizes.llm == sum(p.numel() for name, p in model.llm.named_parameters() if "lora_" not in name)
    # The recogniser's head over the digits is not part of what runs in training.
    assert 0 <= sizes.encoder - sum(p.numel() for p in model.encoder.parameters()) <= 145 * 11


def test_a_frozen_8b_model_fits_one_80_gb_card_and_needs_no_stage_3(real: Recipe) -> None:
    sizes = memory.sizes_of(real)
    assert sizes.llm == 8_030_261_248  # Llama 3.1 8B
    for gpus in (1, 8, 512):
        best = memory.choose(memory.estimates(real, sizes, gpus), 80)
        assert best
        assert best.stage == 1
    best = memory.choose(memory.estimates(real, sizes, 64), 16)
    assert best
    assert "hpZ" in best.name
    assert memory.choose(memory.estimates(real, sizes, 1), 16) is None
    assert "nothing fits" in pace.render(pace.tabulate(real, [1], 16, 8))


def test_states_agree_with_deepspeeds_own_estimator(real: Recipe) -> None:
    """Of the part that trains: its estimator knows no frozen weights."""
    sizes = memory.sizes_of(real)
    for gpus in (1, 8, 64):
        _, deepspeeds, largest = estimate_zero3_model_states_mem_needs(sizes.trainable, 0, 1, gpus, False, False, 1.0)
        ours = by_name(real, gpus)["ZeRO-3"].trainable * 1e9
        assert ours == pytest.approx(deepspeeds - largest, rel=0.15)


def test_more_sharing_never_needs_more(real: Recipe) -> None:
    for gpus in (8, 64):
        found = by_name(real, gpus)
        assert found["ZeRO-1"].trainable > found["ZeRO-2"].trainable > found["ZeRO-3"].trainable
        assert found["ZeRO-3"].frozen < found["ZeRO-1"].frozen
    assert by_name(real, 64)["ZeRO-3"].frozen < by_name(real, 8)["ZeRO-3"].frozen
    without = replace(real, model=replace(real.model, activation_checkpointing=False))
    assert by_name(without, 8)["ZeRO-1"].activations > 5 * by_name(real, 8)["ZeRO-1"].activations
