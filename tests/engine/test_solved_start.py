from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.conftest import rank_environment, run_pair
from torch import nn

from launcher.ranks import Ranks, free_port
from mtbi import recipe as recipes
from mtbi.batches.plan import Plan
from mtbi.engine.solved_start import BLOCK_UTTERANCES, Drawn, SolvedStart, draw
from mtbi.errors import DamagedError, UserError
from mtbi.llm.chat_format import read_chat
from mtbi.model.encoders.build import build_encoder, encoder_facts
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import SpeechLLMModule, build_speech_llm
from mtbi.recipe import Recipe
from mtbi.shards import features
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance

SCRIPT = str(Path(__file__).with_name("together.py"))
ALONE = Ranks(0, 1, 0, 1)


def recipe_of(*overrides: str) -> Recipe:
    return recipes.load("demo", ["plan.window_utterances=20", "precision=fp32", *overrides])


def start_of(shards: Shards, *overrides: str) -> SolvedStart:
    recipe = recipe_of(*overrides)
    plan = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))
    silence = read_chat(recipe).tokenizer.encode(recipe.train.start_silence, add_special_tokens=False)
    return SolvedStart(recipe, silence, shards, plan, ALONE)


def make_model(recipe: Recipe) -> SpeechLLMModule:
    torch.manual_seed(recipe.seed)
    return build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))


def output_of(model: Any) -> nn.Linear:
    return model.adapter.kind.output


def numbers(drawn: Drawn) -> list[int]:
    return [number for block in [*drawn.solved, *drawn.tested] for number in block]


def test_utterances_with_word_times_are_drawn_from_the_seed(shard_folder: Path, text_folder: Path) -> None:
    shards = Shards([str(shard_folder), str(text_folder)])
    geometry = FrameGeometry.from_config(recipe_of().model)

    def drawn(utterances: int, *overrides: str) -> Drawn:
        return draw(Plan(shards.index, recipe_of(*overrides), geometry), utterances)

    everything = drawn(300)
    aligned = shards.index.utterances["words"] > 0
    assert sorted(numbers(everything)) == [number for number in range(60) if aligned[number]]  # 60 and more are text alone
    assert (len(numbers(everything)), sum(map(len, everything.tested))) == (59, 5)
    assert [len(block) for block in everything.solved] == [BLOCK_UTTERANCES] * 6 + [6]
    assert drawn(300) == everything != drawn(300, "seed=2")
    assert sum(map(len, drawn(9).solved)) == 9
    assert len(numbers(drawn(300, "plan.hours=0.01"))) < 40
    assert numbers(drawn(300, "plan.max_audio_seconds=0.01")) == []


def test_the_demo_hears_words_before_its_first_step(shard_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = start_of(Shards(str(shard_folder)), "train.start_utterances=24")
    model = make_model(start.recipe)
    before = output_of(model).weight.clone()
    activities: list[str] = []
    start.report_activity = activities.append
    fit = start.run(model)
    assert fit
    assert fit.words > 10
    assert fit.first > 0.8 * fit.words
    assert "train.start is solved: 24 utterances" in capsys.readouterr().out
    assert len(activities) == 3 * 3 + 1  # blocks: three rounds, and one test
    first = output_of(model).weight.clone()
    assert not torch.equal(first, before)
    again = make_model(start.recipe)
    start.run(again)
    torch.testing.assert_close(output_of(again).weight, first, rtol=0, atol=0)


def test_stored_features_give_the_same_start(shard_folder: Path, tmp_path: Path) -> None:
    recipe, sound, folder = recipe_of(), Shards(str(shard_folder)), str(tmp_path / "encoded")
    encoder = build_encoder(recipe.model.encoder, torch.float32, torch.device("cpu")).eval()
    features.write(sound, encoder, encoder_facts(recipe.model.encoder).output_name, folder)
    solved = []
    for shards in (sound, Shards(folder)):
        # Smaller windows would differ, because the shards do.
        start = start_of(shards, "plan.window_utterances=1000", "train.start_utterances=16")
        model = make_model(recipe)
        assert start.run(model)
        solved.append(model.encode_waveform(sound[0].waveform).detach())
    assert (solved[0] - solved[1]).norm() < 0.02 * solved[0].norm()  # features are stored as float16


def test_without_word_times_the_start_is_random_or_refused(text_folder: Path) -> None:
    shards = Shards(str(text_folder))
    start = start_of(shards)
    assert start.run(make_model(start.recipe)) is None
    with pytest.raises(UserError, match=r"train\.start is solved, but no utterance of data\.shards has word times"):
        start_of(shards, "train.start=solved")


def test_an_adapter_without_an_output_layer_starts_at_random_or_is_refused(
    shard_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Shards(str(shard_folder))
    start = start_of(shards)
    model = make_model(start.recipe)
    plain = nn.Linear(256, output_of(model).out_features)
    model.adapter.kind.output = plain  # type: ignore[union-attr, assignment]
    assert start.run(model) is None
    assert "train.start is random: the adapter 'mlp' does not end in an `Output` layer" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"does not end in an `Output` layer\. Set train\.start=random"):
        start_of(shards, "train.start=solved").run(model)


def test_positions_that_do_not_follow_time_start_at_random_or_are_refused(
    shard_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Shards(str(shard_folder))
    fields = ["model.adapter.kind=clip-qformer", "interleave.cut=encode"]
    start = start_of(shards, *fields)
    assert start.run(make_model(start.recipe)) is None
    assert "train.start is random: the frames of model.adapter.kind=clip-qformer do not follow" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"clip-qformer do not follow the words' times\. Set train\.start=random"):
        start_of(shards, *fields, "train.start=solved")


@pytest.mark.parametrize("fields", [["model.encoder.layers=all"], ["model.adapter.kind=conformer"]])
def test_it_solves_behind_several_layers_and_behind_a_conformer(shard_folder: Path, fields: list[str]) -> None:
    start = start_of(Shards(str(shard_folder)), *fields)
    fit = start.run(make_model(start.recipe))
    assert fit is not None
    assert fit.first > 0.5 * fit.words > 0


class Damaged(Shards):
    """Shards of which an utterance is damaged."""

    damaged = -1

    def __getitem__(self, number: int) -> StoredUtterance:
        if number == self.damaged:
            raise DamagedError("utterance 'u' is damaged")
        return super().__getitem__(number)


def test_a_damaged_utterance_ends_the_run_or_is_left_out(shard_folder: Path) -> None:
    shards = Damaged(str(shard_folder))
    start = start_of(shards)
    shards.damaged = start.drawn.solved[0][0]
    with pytest.raises(UserError, match="is damaged"):
        start.run(make_model(start.recipe))
    skipping = start_of(shards, "data.unreadable=skip")
    assert skipping.run(make_model(skipping.recipe))


@pytest.mark.slow
def test_the_start_does_not_depend_on_the_number_of_processes(
    shard_folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Under ZeRO-3, which partitions the LLM's embeddings."""
    command = [sys.executable, SCRIPT, "solved", str(tmp_path), str(shard_folder)]
    alone = {**environment, **rank_environment(0, 1, free_port())}
    first = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=250, check=True).stdout
    second, third = (output for output, _ in run_pair(command, environment))
    found = [json.loads(output.splitlines()[-1]) for output in (first, second, third)]
    assert found[0] == found[1] == found[2]
    assert found[0]["solved"] != found[0]["random"]
