from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import mtbi
from mtbi import recipe as recipes
from mtbi.chat import Conversation
from mtbi.engine import checkpoint
from mtbi.engine.checkpoint import Snapshot
from mtbi.errors import UserError
from mtbi.model.speech_llm import build_speech_llm

EXAMPLE = Path(__file__).parents[1] / "examples" / "ask.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose adapter is as it began."""
    out = tmp_path_factory.mktemp("run")
    recipe = recipes.load("demo", [f"run_dir={out}"])
    torch.manual_seed(0)
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))
    trainable = {name: value.detach().clone() for name, value in model.trainable_parameters().items()}
    checkpoint.save(out, 1, Snapshot(trainable, {"none": torch.zeros(1)}, {"step": 1}))
    recipes.save(recipe, out / "recipe.yaml")
    return out


def test_files_bytes_and_waveforms_are_the_same_speech(folder: Path, tmp_path: Path) -> None:
    llm = mtbi.SpeechLLM.from_run(folder, device="cpu")
    wave = (0.1 * np.sin(np.arange(12_000) * 0.1)).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", wave, 16_000, subtype="PCM_24")
    path, prompt = tmp_path / "a.flac", "count the digits"
    answers = {llm.ask(prompt, audio) for audio in (str(path), path, path.read_bytes(), llm.read(path))}
    assert len(answers) == 1
    assert llm.ask_many([(path, prompt), (path, prompt)]) == [*answers, *answers]
    assert llm.ask("three five seven reverse the digits") == "seven five three"
    assert isinstance(llm.conversation(), Conversation)
    assert isinstance(llm.recipe, mtbi.Recipe)
    with pytest.raises(UserError, match="not readable as audio"):
        llm.ask(prompt, b"no sound at all")


def test_the_example_runs(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000) + 0.01, 16_000)
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(folder), str(tmp_path / "a.wav")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_importing_is_quick() -> None:
    script = "import sys, mtbi; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False False\n"
    with pytest.raises(AttributeError, match="no attribute 'Speech'"):
        _ = mtbi.Speech
