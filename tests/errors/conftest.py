from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from errors.case import Case, World, lines, run, tone

from mtbi import recipe as recipes
from mtbi.cli import main
from mtbi.engine import checkpoint
from mtbi.model.speech_llm import build_speech_llm


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world, made by the commands themselves. Only the run is not trained."""
    folder = tmp_path_factory.mktemp("world")
    parts = World(*(str(folder / name) for name in ("corpus.jsonl", "answers", "shards", "run")))
    (folder / "a.wav").write_bytes(tone(1))
    lines(parts.corpus, {"id": "a", "audio": "a.wav", "text": "one two three"})(parts)
    assert main(["behave", parts.corpus, parts.answers, "behaviour.tasks=[repeat,count]"]) == 0
    assert main(["data", "shard", parts.corpus, parts.answers, parts.shards]) == 0
    fields = [f"data.shards=[{parts.shards}]", f"data.eval_shards=[{parts.shards}]"]
    recipe = recipes.load("demo", [*fields, f"run_dir={parts.run}", "plan.max_audio_seconds=5"])
    recipes.save(recipe, f"{parts.run}/recipe.yaml")
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"), tasks=1)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    checkpoint.save(parts.run, 1, checkpoint.Snapshot(weights, {}, {"step": 1}))
    return parts


@pytest.fixture
def check_case(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[Case], None]:
    """Asserts that a case ends with status 2 and one error message with all expected parts."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("AWS_", "S3_", "OPENAI_")):
            monkeypatch.delenv(name)

    def check(case: Case) -> None:
        capfd.readouterr()
        status = run(case, world)
        errors = capfd.readouterr().err
        _, *messages = f"\n{errors}".split("\nmtbi: ")
        assert (status, len(messages)) == (2, 1), errors
        assert "Traceback" not in errors
        assert "rrno" not in errors, "an errno of the operating system helps nobody"
        missing = [part for part in case.message if part not in messages[0]]
        assert not missing, messages[0]

    return check
