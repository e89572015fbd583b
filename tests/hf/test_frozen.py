"""Exports of trained weights: no argument of from_pretrained is dropped, and what save_pretrained writes opens again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, Trainer, TrainingArguments

from mtbi.demo.encoder import DigitLogMel
from mtbi.hf import MtbiConfig, MtbiForConditionalGeneration
from mtbi.hf.frozen import INDEX, WEIGHTS, one_device
from mtbi.use.open_run import TrainedRun


def open_export(folder: Path, **arguments: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **arguments)


def saved(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"no_such_argument": 1}, TypeError, "no_such_argument"),
        ({"load_in_8bit": True}, ValueError, "load_in_8bit.*--layout merged"),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, ValueError, "quantization_config.*--layout merged"),
        ({"max_memory": {0: "1GB"}}, ValueError, "max_memory.*--layout merged"),
        ({"variant": "fp16"}, ValueError, "variant.*--layout merged"),
        ({"use_safetensors": False}, ValueError, "use_safetensors"),
        ({"device_map": {"llm": "cpu", "encoder": "meta"}}, ValueError, "device_map.*only loads on one device"),
        ({"device_map": "balanced"}, ValueError, "device_map.*only loads on one device"),
    ],
)
@pytest.mark.parametrize("opener", [open_export, MtbiForConditionalGeneration.from_pretrained])
def test_what_cannot_be_done_is_refused_by_name(
    trained: Path, opener: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opener(trained, **arguments)


@pytest.mark.parametrize("opener", [open_export, MtbiForConditionalGeneration.from_pretrained])
def test_what_can_be_done_is_done(trained: Path, opener: Any) -> None:
    model, info = opener(
        trained,
        dtype="bfloat16",
        device_map="cpu",
        attn_implementation="eager",
        output_loading_info=True,
        generation_config=GenerationConfig(max_new_tokens=3),
        quantization_config=None,
        load_in_8bit=False,
        low_cpu_mem_usage=True,
    )
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert model.llm.config._attn_implementation == "eager"
    assert set(map(len, info.values())) == {0}
    assert model.generation_config.max_new_tokens == 3
    assert opener(trained, torch_dtype=torch.float16).dtype == torch.float16
    assert opener(trained, output_hidden_states=True).config.output_hidden_states is True


def test_positional_arguments_and_empty_models_are_refused(trained: Path) -> None:
    with pytest.raises(TypeError, match="one argument without a name"):
        MtbiForConditionalGeneration.from_pretrained(trained, 1)
    with pytest.raises(ValueError, match="load the export with from_pretrained"):
        AutoModelForCausalLM.from_config(MtbiConfig.from_pretrained(trained))


@pytest.mark.parametrize("size", ["5GB", "10KB"])
def test_saved_again_it_holds_the_trained_weights_and_opens(run: TrainedRun, trained: Path, tmp_path: Path, size: str) -> None:
    model = open_export(trained).to("cpu", torch.float32)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / INDEX).exists() == (size == "10KB")
    assert set(saved(tmp_path)) == set(run.model.trainable_parameters())
    assert_equal(open_export(tmp_path).state_dict(), model.state_dict())


def test_frozen_weights_that_were_changed_are_saved_too(run: TrainedRun, trained: Path, tmp_path: Path) -> None:
    model = open_export(trained)
    norm, frozen = model.llm.model.norm.weight, model.llm.model.layers[0].input_layernorm.weight
    frozen.requires_grad_(True)  # to be trained
    with torch.no_grad():
        norm.mul_(2)  # trained, and frozen again
    model.save_pretrained(tmp_path)
    extra = {"llm.model.norm.weight", "llm.model.layers.0.input_layernorm.weight"}
    assert set(saved(tmp_path)) == set(run.model.trainable_parameters()) | extra
    assert_equal(open_export(tmp_path).state_dict(), model.state_dict())


def test_saving_over_an_export_leaves_no_older_weights(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(trained, folder)
    model = open_export(folder)
    with torch.no_grad():
        for value in model.adapter.parameters():
            value.add_(1)
    for size, left in (("10KB", INDEX), ("5GB", WEIGHTS)):
        model.save_pretrained(folder, max_shard_size=size)
        assert {WEIGHTS, INDEX} & {file.name for file in folder.iterdir()} == {left}
        assert_equal(open_export(folder).adapter.state_dict(), model.adapter.state_dict())
    shutil.copy(trained / "config.json", folder / INDEX)
    with pytest.raises(ValueError, match="has both"):
        open_export(folder)
    for name in (WEIGHTS, INDEX):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        open_export(folder)
    with pytest.raises(ValueError, match="safetensors only"):
        model.save_pretrained(folder, safe_serialization=False)


def test_checkpoints_of_transformers_trainer_hold_the_same(run: TrainedRun, trained: Path, tmp_path: Path) -> None:
    model = open_export(trained)
    settings = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    Trainer(model, settings).save_model(str(tmp_path / "checkpoint"))
    assert set(saved(tmp_path / "checkpoint")) == set(run.model.trainable_parameters())


def test_one_device() -> None:
    assert one_device({"": "cpu"}) == one_device(None) == torch.device("cpu")
    assert one_device(0).index == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_export_computes_features_in_float32_in_every_precision(merged: Path, dtype: torch.dtype) -> None:
    model = open_export(merged, dtype=dtype)
    expected = DigitLogMel(model.encoder.config.mels)
    assert next(model.encoder.parameters()).dtype == dtype
    assert_equal(dict(model.encoder.features.named_buffers()), dict(expected.named_buffers()))
