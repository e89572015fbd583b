from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

from mtbi import recipe as recipes
from mtbi.engine.log import Metrics, peak_of
from mtbi.engine.validation import Evaluation, similarity
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.flops import LLMSize
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import SpeechLLM, build_speech_llm
from mtbi.recipe import Recipe
from mtbi.shards import features
from mtbi.shards.read import Shards

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> SpeechLLM:
    """The miniature speech LLM with an untrained adapter."""
    recipe = recipes.load("demo")
    torch.manual_seed(0)
    return build_speech_llm(recipe.model, recipe.loss, torch.float32, CPU).train()


def start(run_dir: Path, *overrides: str) -> tuple[Recipe, Metrics]:
    recipe = recipes.load("demo", [f"run_dir={run_dir}", "train.sample_dialogues=2", *overrides])
    return recipe, Metrics(recipe, ["repeat"], True, 1, LLMSize(1000, 800, 300), CPU)


def events_of(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def test_an_evaluation_leaves_dialogues_sound_and_pictures(
    tmp_path: Path, model: SpeechLLM, chat: ChatFormat, shard_folder: Path
) -> None:
    recipe, metrics = start(tmp_path)
    shards = Shards(str(shard_folder))
    evaluation = Evaluation(recipe, FrameGeometry.from_config(recipe.model), chat, shards, 0, 1)
    for step in (1, 2):
        evaluation.show_dialogues(model, metrics, step)
    metrics.close()
    assert model.training
    events = events_of(tmp_path)
    assert events.Tags()["images"] == ["alignment/0", "alignment/1"]
    assert [one.step for one in events.Images("alignment/0")] == [1, 2]
    assert min(events.Images("alignment/1")[1].width, events.Images("alignment/1")[1].height) > 100
    assert {"dialogue/0", "dialogue/1"} <= set(events.Tags()["audio"])
    assert events.Audio("dialogue/1")[0].length_frames == len(shards[1].waveform)
    [text] = events.Tensors("dialogue/0/text_summary")[1].tensor_proto.string_val
    assert f"**heard** {shards[0].text}" in text.decode()
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_stored_features_have_no_sound_to_show(tmp_path: Path, model: SpeechLLM, chat: ChatFormat, shard_folder: Path) -> None:
    recipe, metrics = start(tmp_path / "run")
    features.write(Shards(str(shard_folder)), model.encoder, features.encoder_name(recipe), str(tmp_path / "encoded"))
    encoded = Shards(str(tmp_path / "encoded"))
    Evaluation(recipe, FrameGeometry.from_config(recipe.model), chat, encoded, 0, 1).show_dialogues(model, metrics, 1)
    metrics.close()
    assert events_of(tmp_path / "run").Tags()["images"] == []


def test_frames_are_compared_with_words(model: SpeechLLM, shard_folder: Path) -> None:
    sample = Shards(str(shard_folder))[0]
    found = similarity(model, sample.waveform, [ids.tolist() for ids in sample.word_ids])
    with torch.no_grad():
        frames, counts = model.hear(torch.from_numpy(sample.waveform)[None], torch.tensor([len(sample.waveform)]))
        word = model.embed(torch.from_numpy(sample.word_ids[1]).long()).mean(0)
    assert found.shape == (int(counts[0]), len(sample.word_ids))
    expected = float(frames[0, 2] @ word / frames[0, 2].norm() / word.norm())
    assert found[2, 1] == pytest.approx(expected, abs=1e-5)
    assert np.abs(found).max() <= 1 + 1e-6


def test_runs_are_told_apart_by_the_fields_that_differ(tmp_path: Path) -> None:
    names = {"a": "train.learning_rate=1e-3", "b": "train.learning_rate=2e-3"}
    found = {}
    for name, override in names.items():
        start(tmp_path / name, override)[1].close()
        metadata = events_of(tmp_path / name).SummaryMetadata(SESSION_START_INFO_TAG)
        found[name] = parse_session_start_info_plugin_data(metadata.plugin_data.content)
    a, b = (dict(one.hparams) for one in found.values())
    assert {path for path in a if a[path] != b[path]} == {"train.learning_rate"}
    assert a["train.learning_rate"].number_value == 1e-3
    assert a["model.encoder.trainable"].bool_value is False
    assert a["data.shards"].string_value == '["{run_dir}/data/train/shards"]'
    assert {*a, "run_dir"} == {note.path for note in recipes.reference()}
    assert found["b"].group_name == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA RTX A1000", None), ("NVIDIA GB200", 2500e12), ("AMD Instinct MI300X", 1307e12),
    ],
)  # fmt: skip
def test_gpus_are_known_by_their_whole_names(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak
