"""Which layers of an LLM train."""

from __future__ import annotations

import pytest
import torch

from mtbi import recipe as recipes
from mtbi.errors import UserError
from mtbi.llm import trained_layers
from mtbi.llm.load import load_llm
from mtbi.recipe import ModelConfig


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ("none", []),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("last 2", [4, 5]),
        ("last 6", [0, 1, 2, 3, 4, 5]),
        ("3", [3]),
        ("0-2,5", [0, 1, 2, 5]),
        ("5, 1-2, 2", [1, 2, 5]),
    ],
)
def test_layers_are_chosen(choice: str, chosen: list[int]) -> None:
    assert trained_layers.numbers(choice, 6) == chosen


@pytest.mark.parametrize("choice", ["", "last", "last 0", "last -1", "first 2", "3-2", "1,", "a-b", "All"])
def test_other_words_are_refused(choice: str) -> None:
    with pytest.raises(UserError, match=r"model\.llm_trainable is .*write `none`, `all`, `last 4`, or numbers"):
        trained_layers.numbers(choice, 6)


@pytest.mark.parametrize("choice", ["last 5", "4", "0-4"])
def test_layers_that_the_llm_lacks_are_refused_before_its_weights_are_read(choice: str) -> None:
    with pytest.raises(UserError, match="the LLM has 4 layers, numbered from 0"):
        trained_layers.check(ModelConfig(llm_trainable=choice))
    trained_layers.check(ModelConfig())


def test_whole_layers_train_and_tables_and_final_norm_never_do() -> None:
    def trainable(choice: str, **fields: object) -> set[str]:
        llm = load_llm(ModelConfig(llm_trainable=choice, **fields), torch.float32, torch.device("cpu"))  # type: ignore[arg-type]
        return {name for name, value in llm.named_parameters() if value.requires_grad}

    own = trainable("last 1")
    assert own == {name for name in own if name.startswith("model.layers.3.")}
    assert any("norm" in name for name in own)
    every = trainable("all")
    assert {name.split(".")[1] for name in every} == {"layers"}
    assert len(every) == 4 * len(own)
    assert trainable("none") == set()


def test_what_does_not_go_with_trained_layers_is_refused_with_the_recipe() -> None:
    with pytest.raises(UserError, match=r"train\.llm_learning_rate is 0"):
        recipes.load("demo", ["model.llm_trainable=all"])
    rate = "train.llm_learning_rate=1e-5"
    with pytest.raises(UserError, match=r"model\.llm_fp8 rounds the layers that are frozen"):
        recipes.load("demo", ["model.llm_trainable=all", rate, "model.llm_fp8=true"])
    assert recipes.load("demo", ["model.llm_trainable=last 2", rate, "model.llm_fp8=true"]).model.llm_fp8
