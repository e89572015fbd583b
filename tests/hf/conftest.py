"""A miniature speech LLM as it is exported: demo encoder and LLM, with random trained weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi import recipe as recipes
from mtbi.audio import codec
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer
from mtbi.model.speech_llm import build_speech_llm
from mtbi.use.export import export
from mtbi.use.open_run import TrainedRun


def open_new(*overrides: str) -> TrainedRun:
    """A run whose trained weights are random."""
    torch.manual_seed(0)
    recipe = recipes.load("demo", ["plan.max_audio_seconds=5", *overrides])
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        for value in model.trainable_parameters().values():
            value.add_(0.1 * torch.randn_like(value))
    chat = ChatFormat(load_llm_tokenizer("demo"))
    return TrainedRun(Path("run"), Path("none"), recipe, model.eval(), chat, torch.device("cpu"))


@pytest.fixture(scope="session")
def run() -> TrainedRun:
    """Trains its adapter and low-rank updates of the LLM; hears at most 5 seconds."""
    return open_new("model.llm_lora.rank=2")


@pytest.fixture(scope="session")
def trained(run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its trained weights alone."""
    out = tmp_path_factory.mktemp("exports") / "trained"
    export(run, out)
    return out


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All weights of such a model without low-rank updates."""
    out = tmp_path_factory.mktemp("exports") / "merged"
    export(open_new(), out, "merged")
    return out


@pytest.fixture(scope="session")
def waves(speech: Path) -> list[np.ndarray]:
    """Four recordings of different lengths."""
    lines = (speech / "fsdd" / "manifest.jsonl").read_text().splitlines()
    digits = [codec.read(speech / "fsdd" / json.loads(line)["audio"]) for line in lines[:8]]
    return [np.concatenate(digits[:count]) for count in (1, 4, 2, 6)]
