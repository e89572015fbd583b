from __future__ import annotations

import pytest
import torch
from tiny_models import build
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mtbi.errors import UserError
from mtbi.recipe import LoraConfig


@pytest.mark.parametrize("trainable", ["none", "all"])
def test_activation_checkpointing_changes_no_gradient(folder, heard, trainable):
    results = []
    for chosen in ("auto", "off", "on"):
        model = build(folder, activation_checkpointing=chosen, llm_trainable=trainable).train()
        assert model.llm.is_gradient_checkpointing == (chosen == "on")  # `auto` is decided before, for training alone
        out = model(heard)
        out.loss.backward()
        results.append([out.loss, *(parameter.grad for parameter in model.trainable_parameters().values())])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[1], results[2])


@pytest.mark.slow
def test_compiling_changes_no_gradient_and_compiles_layers_once(folder, heard, tmp_path):
    six, results = LlamaConfig.from_pretrained(folder, num_hidden_layers=6), []
    LlamaForCausalLM(six).save_pretrained(tmp_path / "six")
    for on in (False, True):
        model = build(str(tmp_path / "six"), compile=on).train()
        torch._dynamo.utils.counters.clear()
        out = model(heard)
        out.loss.backward()
        results.append([out.loss, *(parameter.grad for parameter in model.trainable_parameters().values())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 4, "before and after attention, for the first layer and for all others"


@pytest.mark.slow
def test_compiled_layers_train_as_others_do_beside_frozen_ones(folder, heard, tmp_path):
    four, results = LlamaConfig.from_pretrained(folder, num_hidden_layers=4), []
    torch.manual_seed(0)
    LlamaForCausalLM(four).save_pretrained(tmp_path / "four")
    for on in (False, True):
        model = build(str(tmp_path / "four"), compile=on, llm_trainable="1-3").train()
        out = model(heard)
        out.loss.backward()
        results.append([out.loss, *(parameter.grad for parameter in model.trainable_parameters().values())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
    assert len(results[0]) > 3 * 9


def test_mistakes_are_named(tmp_path, folder):
    with pytest.raises(UserError, match=r"model\.llm: cannot read the configuration of"):
        build(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="lora"):
        build(folder, llm_lora=LoraConfig(rank=2, targets=["nothing"]))
    assert AutoModelForCausalLM.from_pretrained(folder) is not None
