from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from transformers import LlamaConfig, Qwen3Config, WhisperConfig

from mtbi import recipe as recipes
from mtbi.engine import memory, step_time
from mtbi.engine.engine import decided_model
from mtbi.engine.memory import MemoryEstimate
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


def by_name(recipe: Recipe, gpus: int) -> dict[str, MemoryEstimate]:
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
        _, best = memory.survey(real, sizes, gpus, 80)
        assert best
        assert (best.stage, best.recomputed) == (1, False)
    _, best = memory.survey(real, sizes, 64, 16)
    assert best
    assert "hpZ" in best.name
    assert best.recomputed
    assert memory.survey(real, sizes, 1, 16)[1] is None


def test_what_trains_of_an_llm_has_gradients_copies_and_moments(real: Recipe) -> None:
    """Of 8 billion parameters, all layers take 16 bytes each on one GPU, and the tables stay frozen."""
    layers = replace(real, model=replace(real.model, llm_trainable="all"))
    before, sizes = memory.sizes_of(real), memory.sizes_of(layers)
    assert sizes.llm_trained == sizes.llm_layers - 4096 == 8_030_261_248 - 2 * 128_256 * 4096 - 4096  # without the final norm
    assert (sizes.llm, sizes.trainable) == (before.llm, before.trainable + sizes.llm_trained)
    one, frozen = by_name(layers, 1), by_name(real, 1)
    for name in one:
        assert frozen[name].frozen - one[name].frozen == pytest.approx(2e-9 * sizes.llm_trained)
        assert one[name].trainable - frozen[name].trainable == pytest.approx(16e-9 * sizes.llm_trained)
    eight = by_name(layers, 8)
    assert eight["ZeRO-1"].trainable == pytest.approx(1e-9 * sizes.trainable * (2 + 2 + 12 / 8))
    assert eight["ZeRO-2"].trainable == pytest.approx(1e-9 * sizes.trainable * (2 + 2 / 8 + 12 / 8))
    assert eight["ZeRO-3"].trainable == pytest.approx(1e-9 * sizes.trainable * 16 / 8)
    assert eight["ZeRO-3"].gathered == pytest.approx(1.5 * by_name(real, 8)["ZeRO-3"].gathered)
    assert memory.checkpoint_of(layers, sizes).bytes == 12 * sizes.trainable
    # With 8-bit floats, layers that train keep their 16 bits.
    part = replace(real, model=replace(real.model, llm_trainable="last 8", llm_fp8=True))
    trained = memory.sizes_of(part)
    saved = frozen["ZeRO-1"].frozen - by_name(part, 1)["ZeRO-1"].frozen
    assert saved == pytest.approx(1e-9 * (2 * trained.llm_trained + trained.llm_layers - trained.llm_trained))


def test_what_else_a_run_holds_is_counted(real: Recipe) -> None:
    more = replace(
        real,
        model=replace(real.model, new_tokens=["<a>", "<b>"]),
        loss=replace(real.loss, later_tokens=2, alignment=0.5, alignment_tokens=1000),
    )
    sizes = memory.sizes_of(more)
    assert (
        sizes.trainable - memory.sizes_of(real).trainable == 2 * 2 * 4096 + 2 * 4096**2
    )  # two tables of an LLM that is not tied
    assert sizes.copied == 1001 * 4096
    assert by_name(more, 1)["ZeRO-1"].frozen - by_name(real, 1)["ZeRO-1"].frozen == pytest.approx(4e-9 * sizes.copied)


def test_the_shipped_recipe_that_trains_an_llm_fits_one_gpu(tmp_path: Path) -> None:
    """With models of the same shape, as configurations only."""
    Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ).save_pretrained(tmp_path / "qwen3")  # fmt: skip
    WhisperConfig(
        d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072, decoder_layers=1,
        decoder_attention_heads=12,
    ).save_pretrained(tmp_path / "whisper")  # fmt: skip
    models = [f"model.llm={tmp_path}/qwen3", f"model.encoder.path={tmp_path}/whisper"]
    recipe = recipes.load("whisper-small_qwen3-0.6b_self-powered", models)
    table = step_time.tabulate(recipe, [1], 24, 8)
    assert table.sizes.llm_trained == 440_466_432
    assert table.choices[0].best
    assert set(table.checkpoint.parts) == {"adapter", "LLM layers"}
    assert "checkpoints: 5.7 GB each (adapter " in step_time.render(table)


def recomputing(recipe: Recipe, chosen: str) -> Recipe:
    return replace(recipe, model=replace(recipe.model, activation_checkpointing=chosen))


def test_the_plan_recomputes_only_where_nothing_fits_otherwise(real: Recipe) -> None:
    table = step_time.render(step_time.tabulate(real, [8, 64], 48, 8))
    assert "     8 with activations recomputed:" in table
    assert "    64 with activations recomputed:" not in table  # ZeRO-3 over 64 GPUs fits without
    assert table.count("← take this") == 2
    for chosen in ("auto", "on"):
        table = step_time.render(step_time.tabulate(recomputing(real, chosen), [1], 16, 8))
        assert "1 with activations recomputed:" in table
        assert "nothing fits: lower plan.row_tokens" in table
    table = step_time.render(step_time.tabulate(recomputing(real, "off"), [1], 40, 8))
    assert "recomputed" not in table
    assert "nothing fits: turn on model.activation_checkpointing, lower" in table


def test_auto_decides_for_the_stage_that_runs(real: Recipe) -> None:
    sizes = memory.sizes_of(real)
    for gpu_gb, stage, gpus, chosen in ((80, 1, 8, "off"), (48, 1, 64, "on"), (48, 2, 64, "on"), (48, 3, 64, "off")):
        assert memory.decide(real, sizes, gpus, stage, gpu_gb)[0] == chosen
    without = {one.name: one.total for one in memory.estimates(real, sizes, 64)}
    assert memory.decide(real, sizes, 64, 2, 48)[1] == without["ZeRO-2"]
    assert memory.decide(real, sizes, 64, 3, 48)[1] == without["ZeRO-3"]
    assert memory.decide(real, sizes, 64, 3, 48, node=8) == ("on", without["ZeRO-3, weights whole in each node (hpZ)"])
    edge = without["ZeRO-1"] / memory.USABLE_SHARE
    assert memory.decide(real, sizes, 64, 1, edge + 0.01)[0] == "off"
    assert memory.decide(real, sizes, 64, 1, edge - 0.01)[0] == "on"


def test_training_decides_before_it_builds(
    real: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = SimpleNamespace(total_memory=48e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)

    def decided(recipe: Recipe, zero: dict[str, int], device: str = "cuda") -> str:
        return decided_model(recipe, zero, torch.device(device), 64).activation_checkpointing

    assert decided(real, {"stage": 1}, "cpu") == "off"
    assert [decided(recomputing(real, chosen), {"stage": 3}) for chosen in ("on", "off")] == ["on", "off"]
    assert capsys.readouterr().out == ""
    assert decided(real, {"stage": 3}) == "off"
    assert decided(real, {"stage": 3, "zero_hpz_partition_size": 8}) == "on"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model.activation_checkpointing is off: estimated 43.2 GB without it, 92% of 48 GB can be used"
    assert len(lines) == 2


def test_8_bit_floats_halve_the_layers_and_stay_whole(real: Recipe) -> None:
    rounded = by_name(replace(real, model=replace(real.model, llm_fp8=True)), 8)
    table, saved = 128_256 * 4096, by_name(real, 8)["ZeRO-1"].frozen - rounded["ZeRO-1"].frozen
    assert saved == pytest.approx((8_030_261_248 - 2 * table) / 1e9)
    assert set(rounded) == {"ZeRO-1", "ZeRO-2"}


def test_states_agree_with_deepspeeds_own_estimator(real: Recipe) -> None:
    """Of the part that trains: its estimator knows no frozen weights."""
    sizes = memory.sizes_of(real)
    for gpus in (1, 8, 64):
        _, deepspeeds, largest = estimate_zero3_model_states_mem_needs(sizes.trainable, 0, 1, gpus, False, False, 1.0)
        ours = by_name(real, gpus)["ZeRO-3"].trainable * 1e9
        assert ours == pytest.approx(deepspeeds - largest, rel=0.15)


def test_more_sharing_never_needs_more(real: Recipe) -> None:
    for gpus in (8, 64):
        estimates = by_name(real, gpus)
        assert estimates["ZeRO-1"].trainable > estimates["ZeRO-2"].trainable > estimates["ZeRO-3"].trainable
        assert estimates["ZeRO-3"].frozen < estimates["ZeRO-1"].frozen
    assert by_name(real, 64)["ZeRO-3"].frozen < by_name(real, 8)["ZeRO-3"].frozen
    recomputed = next(memory.estimates(real, memory.sizes_of(real), 8, recomputed=True))
    assert by_name(real, 8)["ZeRO-1"].activations > 5 * recomputed.activations
