"""The text LLM from before training, inside a run whose LLM was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from use.test_open_run import trained_run

from mtbi.engine import checkpoint
from mtbi.llm.load import load_llm
from mtbi.recipe import ModelConfig
from mtbi.use.open_run import TrainedRun, open_run
from mtbi.use.text_llm import TextLLM

CPU, IDS = torch.device("cpu"), torch.arange(3, 40)[None]
LAYERS = ["model.llm_trainable=last 2", "train.llm_learning_rate=1e-5"]


def moved_run(folder: Path, *fields: str) -> TrainedRun:
    """A run in which all that trains has moved away from where it began."""
    found = checkpoint.folder_of(trained_run(folder, {}, *fields), 1)
    torch.manual_seed(1)
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in checkpoint.load_trainable(found).items()}
    checkpoint.save(folder, 1, checkpoint.Snapshot(weights, {}, {"step": 1}))
    return open_run(folder, "latest", "cpu")


@torch.no_grad()
def logits(llm: torch.nn.Module) -> torch.Tensor:
    return llm(IDS).logits


@pytest.mark.parametrize("fields", [LAYERS, ["model.llm_lora.rank=4"], [*LAYERS, "model.llm_lora.rank=4"]])
def test_it_is_the_llm_from_before_and_the_trained_one_comes_back(fields: list[str], tmp_path: Path) -> None:
    run = moved_run(tmp_path, *fields)
    before, trained = logits(load_llm(ModelConfig(), torch.float32, CPU)), logits(run.model.llm)
    assert (trained - before).abs().max() > 0.1
    text_llm = TextLLM(run)
    for _ in range(2):
        with text_llm.restored():
            torch.testing.assert_close(logits(run.model.llm), before)
        assert torch.equal(logits(run.model.llm), trained)


def test_a_frozen_llm_is_not_read_again(untrained_run: TrainedRun) -> None:
    text_llm = TextLLM(untrained_run)
    with text_llm.restored():
        assert text_llm.other_weights == {}
