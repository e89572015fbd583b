from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mtbi.benchmark import run as benchmark
from mtbi.benchmark.answers import ConditionAsker
from mtbi.benchmark.run import Settings, evaluate
from mtbi.benchmark.saved_answers import UNFINISHED
from mtbi.metrics import CASCADE, SPEECH, TEXT_LLM
from mtbi.model.recogniser import Transcriber
from mtbi.use.open_run import TrainedRun

ALL = Settings(dialogues=0, batch_size=4, controls=())


@pytest.fixture
def asked(run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainedRun, list[str]]:
    """A run whose reports go to a folder of the test, and the sources of all answers that were generated, in order."""
    sources: list[str] = []
    add_answers = ConditionAsker.add_answers

    def noted(self: ConditionAsker, turns: list, source: str, speech: object) -> None:
        sources.extend(source for turn in turns if source not in turn.dialogue.answers)
        add_answers(self, turns, source, speech)  # type: ignore[arg-type]

    monkeypatch.setattr(ConditionAsker, "add_answers", noted)
    shards = [address.replace("{run_dir}", str(run.folder)) for address in run.recipe.data.shards]
    data = dataclasses.replace(run.recipe.data, shards=shards)
    recipe = dataclasses.replace(run.recipe, data=data)
    return dataclasses.replace(run, folder=tmp_path, recipe=recipe), sources


@contextmanager
def kill_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kill in the middle of an evaluation, after so many batches."""
    ask, count = ConditionAsker.ask, iter(range(100))

    def until(self: ConditionAsker, turns: list) -> None:
        if next(count) == batches:
            raise KeyboardInterrupt
        ask(self, turns)

    with monkeypatch.context() as patch:
        patch.setattr(ConditionAsker, "ask", until)
        yield


def test_a_killed_evaluation_goes_on(
    run: TrainedRun, asked: tuple[TrainedRun, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, sources = asked
    settings = dataclasses.replace(ALL, places={"test": f"{run.folder}/test/shards"})
    whole = evaluate(here, settings)
    in_all = len(sources)
    sources.clear()
    with kill_after(2, monkeypatch), pytest.raises(KeyboardInterrupt):
        evaluate(here, settings)
    unfinished = whole.folder / UNFINISHED
    unfinished.write_text(unfinished.read_text()[:-20])  # the kill cut off the last line
    before = len(sources)
    again = evaluate(here, settings)
    assert len(sources) - before < in_all - before + 4  # the dialogue of the cut line is asked again, and no other
    assert len(sources) > before
    assert again.cells == whole.cells
    assert again.dialogues == whole.dialogues
    assert not unfinished.exists()


def test_answers_of_another_checkpoint_are_not_used(
    run: TrainedRun, asked: tuple[TrainedRun, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, sources = asked
    settings = dataclasses.replace(ALL, places={"test": f"{run.folder}/test/shards"})
    weights = here.folder / "step-1" / "trainable.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    here = dataclasses.replace(here, checkpoint=weights.parent)
    with kill_after(2, monkeypatch), pytest.raises(KeyboardInterrupt):
        evaluate(here, settings)
    weights.write_bytes(b"two")
    sources.clear()
    report = evaluate(here, settings)
    assert sources.count(SPEECH) == len(report.dialogues)


def test_a_report_gets_a_cascade_without_asking_again(
    run: TrainedRun, asked: tuple[TrainedRun, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hears(name: str, device: torch.device) -> Transcriber:
        return lambda waveforms: [name for _ in waveforms]

    monkeypatch.setattr(benchmark, "open_recogniser", hears)
    here, sources = asked
    settings = dataclasses.replace(ALL, places={"test": f"{run.folder}/test/shards"}, reuse=True)
    first = evaluate(here, settings)
    sources.clear()
    second = evaluate(here, dataclasses.replace(settings, recogniser="three five"))
    assert set(sources) == {CASCADE}
    assert {d.heard for d in second.dialogues} == {"three five"}
    assert [d.answers[SPEECH] for d in second.dialogues] == [d.answers[SPEECH] for d in first.dialogues]
    sources.clear()
    third = evaluate(here, dataclasses.replace(settings, recogniser="one"))
    assert set(sources) == {CASCADE}
    assert {d.heard for d in third.dialogues} == {"one"}  # another recogniser, other transcripts
    assert all(d.answers[TEXT_LLM] for d in third.dialogues)
