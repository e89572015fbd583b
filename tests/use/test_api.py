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
from mtbi.engine import checkpoint
from mtbi.engine.checkpoint import Snapshot
from mtbi.errors import UserError
from mtbi.model.generate import generate
from mtbi.model.speech_llm import build_speech_llm
from mtbi.use.conversation import Conversation

EXAMPLE = Path(__file__).parents[2] / "examples" / "ask.py"


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


def test_samples_in_every_form_are_the_same_speech(folder: Path) -> None:
    llm = mtbi.SpeechLLM.from_run(folder, device="cpu")
    whole = (8000 * np.sin(np.arange(8000) * 0.1)).astype(np.int16)
    wave, prompt = (whole / 2**15).astype(np.float32), "count the digits"
    forms = [wave, whole, torch.from_numpy(whole), (16_000, whole), {"array": wave, "sampling_rate": 16_000}]
    forms.append(np.stack([whole, whole], 1))
    assert len(set(llm.ask_many([(form, prompt) for form in forms]))) == 1
    assert {llm.ask(prompt, form) for form in forms} == {llm.conversation().ask(prompt, recordings=forms[:1])}
    assert {llm.conversation().say([form], prompt) for form in forms} == {llm.ask(prompt, wave)}
    for wrong in (np.zeros(0, np.float32), np.full(16_000, np.nan), 8000 * wave, [wave, wave], {"array": wave}):
        for refuse in (llm.ask, lambda text, form: llm.conversation().say([form], text)):
            with pytest.raises(UserError):
                refuse(prompt, wrong)
    with pytest.raises(UserError, match=r"question 2: no samples"):
        llm.ask_many([(wave, prompt), (wave[:0], prompt)])
    with pytest.raises(UserError, match="at most"):
        llm.conversation().say([np.zeros(16_000 * 1000, np.float32)], prompt)


def test_many_questions_are_answered_in_batches_of_bounded_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = mtbi.SpeechLLM.from_run(folder, device="cpu")
    tones = [(0.1 * np.sin(np.arange(1600 * length) * 0.05 * length)).astype(np.float32) for length in (9, 2, 5)]
    prompts = ("count the digits", "repeat", "say the digits backwards")
    questions: list[tuple[object, str]] = [(tone, prompt) for tone in tones for prompt in prompts]
    questions.append((None, "three five seven reverse the digits"))
    alone = [llm.ask(prompt, tone, 8) for tone, prompt in questions]
    assert alone[-1] == "seven five three"
    sizes: list[int] = []

    def counting(model: object, batch: list, *rest: object) -> list[list[int]]:
        sizes.append(len(batch))
        return generate(model, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("mtbi.use.api.generate", counting)
    for batch_size, expected in ((1, [1] * 10), (4, [4, 4, 2]), (16, [10])):
        sizes.clear()
        assert llm.ask_many(questions, 8, batch_size) == alone
        assert sizes == expected
    assert llm.ask_many([]) == []
    with pytest.raises(UserError, match="batch_size=0"):
        llm.ask_many(questions, batch_size=0)


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
