"""A run that is opened for use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, WhisperConfig, WhisperModel

from mtbi import recipe as recipes
from mtbi.engine import checkpoint
from mtbi.errors import UserError
from mtbi.llm import attention
from mtbi.model.speech_llm import build_speech_llm
from mtbi.use.open_run import open_run

CPU = torch.device("cpu")
WHISPER = {
    "d_model": 32, "vocab_size": 64, "max_source_positions": 250, "pad_token_id": 0, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 1, "decoder_layers": 1,
}  # fmt: skip


def trained_run(folder: Path, state: dict, *overrides: str, also: tuple[str, ...] = ()) -> Path:
    """A run of the demo's models with untrained weights; `also` names parameters that the checkpoint holds beside them."""
    recipe = recipes.load("demo", [f"run_dir={folder}", "plan.max_audio_seconds=5", *overrides])
    recipes.save(recipe, folder / "recipe.yaml")
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, CPU)
    kept = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    kept |= {name: value.detach() + 1 for name, value in model.named_parameters() if name in also}
    checkpoint.save(folder, 1, checkpoint.Snapshot(kept, {}, {"step": 1, **state}))
    return folder


@pytest.mark.parametrize(
    ("state", "recipe", "as_trained", "dtype"),
    [
        ({"precision": "bf16"}, "auto", True, torch.bfloat16),  # trained on a GPU, exported on a CPU
        ({"precision": "bf16"}, "auto", False, torch.float32),
        ({"precision": "fp32"}, "auto", True, torch.float32),
        ({}, "bf16", True, torch.bfloat16),
        ({}, "auto", True, torch.float32),  # of an earlier version
    ],
)
def test_a_run_is_exported_in_the_precision_of_its_training(state, recipe, as_trained, dtype, tmp_path: Path) -> None:
    run = open_run(trained_run(tmp_path, state, f"precision={recipe}"), "latest", "cpu", as_trained=as_trained)
    assert {parameter.dtype for parameter in run.model.adapter.parameters()} == {dtype}
    assert run.model.llm.dtype == dtype


def test_sinusoids_that_an_earlier_version_trained_are_used(tmp_path: Path) -> None:
    WhisperModel(WhisperConfig(**WHISPER)).save_pretrained(tmp_path / "whisper")
    name, fields = "encoder.encoder.embed_positions.weight", [f"model.encoder.path={tmp_path / 'whisper'}"]
    trained_run(tmp_path / "run", {}, *fields, "model.encoder.trainable=true", also=(name,))
    saved = checkpoint.load_trainable(checkpoint.folder_of(tmp_path / "run", 1))[name]
    model = open_run(tmp_path / "run", "latest", "cpu").model
    assert torch.equal(model.get_parameter(name), saved)
    assert name in model.trainable_parameters()  # so that an export holds it


def test_an_llm_that_answers_by_something_else_is_not_opened(tmp_path: Path, monkeypatch) -> None:
    folder = trained_run(tmp_path, {})
    wrong = attention._as_back_end(lambda *arguments: attention.dense_attention(*arguments) * 1.5)
    register = AttentionInterface.register
    monkeypatch.setattr(attention, "register", lambda: register(attention.DENSE, wrong))
    with pytest.raises(UserError, match=r"model.llm: 'demo' \(LlamaForCausalLM\) gives hidden states .* off for packed rows"):
        open_run(folder, "latest", "cpu")
