"""What trains: its parts, their learning rates, and the size of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from mtbi import recipe as recipes
from mtbi.engine import checkpoint, memory, trained
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.trained import parameter_groups
from mtbi.model.adapter import Output, build_adapter
from mtbi.model.speech_llm import SpeechLLMModule, build_speech_llm
from mtbi.recipe import AdapterConfig, TrainConfig

EVERYTHING = [
    "model.llm_trainable=last 2", "train.llm_learning_rate=1e-5", "model.llm_lora.rank=4", "model.encoder.trainable=true",
    "model.new_tokens=[<a>,<b>]", "loss.later_tokens=1",
]  # fmt: skip


def build(*fields: str) -> SpeechLLMModule:
    recipe = recipes.load("demo", [*fields])
    return build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["mlp", "swiglu", "conv", "qformer", "transformer"])
def test_each_part_has_its_learning_rate(kind: str) -> None:
    adapter = build_adapter(AdapterConfig(kind, hidden=8), encoder_width=4, llm_hidden=8)
    parameters = {f"adapter.{name}": value for name, value in adapter.named_parameters()}
    parameters |= {"encoder.layer.weight": Parameter(torch.zeros(1)), "llm.q_proj.lora_A.weight": Parameter(torch.zeros(1))}
    rates = {"learning_rate": 1e-3, "encoder_learning_rate": 1e-5, "hidden_learning_rate": 1e-4}
    (output,) = (module for module in adapter.modules() if isinstance(module, Output))

    groups = parameter_groups(parameters, TrainConfig(**rates))
    shares = {id(parameter): group["rate_share"] for group in groups for parameter in group["params"]}
    assert [group["rate_share"] for group in groups] == pytest.approx([1, 0.01, 0.1])
    assert len(shares) == len(parameters)
    for parameter in adapter.parameters():
        is_output = any(parameter is own for own in output.parameters())
        assert shares[id(parameter)] == pytest.approx(1 if is_output else 0.1)
    # Without rates of their own, all are one group, as DeepSpeed's partitions of earlier versions were.
    [group] = parameter_groups(parameters, TrainConfig(learning_rate=1e-3))
    assert {key: value for key, value in group.items() if key != "params"} == {"rate_share": 1, "alignment_share": 1}


def test_every_part_of_a_whole_model_can_have_a_rate() -> None:
    parameters = build(*EVERYTHING).trainable_parameters()
    rates = {"encoder": 2e-5, "encoder_lora": 3e-5, "hidden": 4e-5, "llm": 5e-5, "llm_lora": 6e-5, "new_tokens": 7e-5}
    train = TrainConfig(learning_rate=1e-5, **{f"{part}_learning_rate": rate for part, rate in rates.items()})
    groups = parameter_groups(parameters | {"encoder.q.lora_B.weight": Parameter(torch.zeros(2, 2))}, train)
    # The adapter's output layer and the heads of later tokens; then the parts in order, the LLM's matrices before its norms.
    assert [group["rate_share"] for group in groups] == pytest.approx([1, 2, 4, 3, 5, 5, 6, 7])
    assert sum(len(group["params"]) for group in groups) == len(parameters) + 1
    # An encoder's low-rank updates have the encoder's rate while they have none of their own.
    lora = {"encoder.q.lora_B.weight": Parameter(torch.zeros(2, 2))}
    [group] = parameter_groups(lora, TrainConfig(learning_rate=1e-5, encoder_learning_rate=2e-5))
    assert group["rate_share"] == pytest.approx(2)


def test_norms_of_the_llm_do_not_decay_and_steps_without_the_llm_leave_it_alone() -> None:
    parameters = build(*EVERYTHING).trainable_parameters()
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = parameter_groups(parameters, TrainConfig(llm_learning_rate=1e-5))
    without = {names[id(value)] for group in groups if group.get("weight_decay") == 0 for value in group["params"]}
    still = {names[id(value)] for group in groups if group["alignment_share"] == 0 for value in group["params"]}
    own = {name for name in names.values() if trained.part_of(name) == "llm"}
    assert still == own
    assert without == {name for name in own if "norm" in name} != set()


def test_a_checkpoint_is_as_large_as_it_is_said_to_get(tmp_path: Path) -> None:
    model = build(*EVERYTHING)
    recipe = recipes.load("demo", [*EVERYTHING, "train.keep_last=3"])
    said = memory.checkpoint_of(recipe, memory.sizes_of(recipe))
    assert said.parts == {title: n for title, n in trained.counts(model.trainable_parameters().items()).items() if n}
    assert set(said.parts) == {"adapter", "encoder", "LLM layers", "LLM LoRA", "new tokens", "later tokens"}
    values = {name: value.detach().float() for name, value in model.trainable_parameters().items()}
    moments = {f"{name}.{moment}": value.clone() for name, value in values.items() for moment in ("exp_avg", "exp_avg_sq")}
    folder = checkpoint.save(tmp_path, 1, Snapshot(values, moments, {"step": 1}))
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert said.bytes < written < 1.02 * said.bytes
    assert (said.kept, said.folder_bytes) == (5, 6 * said.bytes)
    assert str(said).startswith(f"{said.bytes / 1e6:.1f} MB each (adapter 0.2 M, encoder 0.7 M, LLM layers 0.4 M, ")


def test_a_checkpoint_of_other_parts_is_named() -> None:
    before, now = build(), build("model.llm_trainable=all", "train.llm_learning_rate=1e-5")
    text = checkpoint.parameter_difference(dict(before.trainable_parameters()), now)
    assert text.startswith("the recipe trains LLM layers, and the checkpoint does not: 36 trainable parameters differ, ")
    text = checkpoint.parameter_difference(dict(now.trainable_parameters()), before)
    assert text.startswith("the checkpoint trains LLM layers, and the recipe does not: 36 ")
    fewer = build("model.llm_trainable=last 1", "train.llm_learning_rate=1e-5")
    assert checkpoint.parameter_difference(dict(now.trainable_parameters()), fewer).startswith("27 trainable parameters")
