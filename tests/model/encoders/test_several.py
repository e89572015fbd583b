"""Several encoders side by side: frames, training, checkpoints, exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import train_on

from mtbi import recipe as recipes
from mtbi.batches.loader import Loader
from mtbi.batches.plan import Plan
from mtbi.engine import checkpoint, memory
from mtbi.engine.checkpoint import Snapshot
from mtbi.errors import UserError
from mtbi.hf import MtbiForConditionalGeneration
from mtbi.model.encoders.build import build_encoder, encoder_facts, set_trainable
from mtbi.model.encoders.several import at_frames
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import EncoderConfig, Recipe
from mtbi.shards.read import Shards
from mtbi.use.export import export
from mtbi.use.open_run import open_run

CPU = torch.device("cpu")
LOW = ["model.encoder.beside.low.path=demo", "model.encoder.beside.low.layer=1", "model.encoder.beside.low.trainable=true"]


def test_features_stand_beside_those_of_the_first_at_its_frames(saved, clips) -> None:
    beside = {"low": EncoderConfig("demo", layer=1), "whisper": EncoderConfig(saved("whisper"))}
    config = EncoderConfig("demo", beside=beside)
    built = build_encoder(config, torch.float32, CPU).eval()
    alone = [build_encoder(part, torch.float32, CPU).eval() for part in (EncoderConfig("demo"), *beside.values())]
    waveforms, lengths = clips([16_000, 1, 9_000])
    with torch.no_grad():
        features, frames = built(waveforms, lengths)
        (first, expected), (low, _), (whisper, _) = (encoder(waveforms, lengths) for encoder in alone)
    assert torch.equal(frames, expected)
    assert torch.equal(features[..., :144], first)
    assert torch.equal(features[..., 144:288], low)
    # Whisper has 50 frames a second and the first encoder 25: two become their mean.
    torch.testing.assert_close(features[0, ..., 288:], whisper[0].unflatten(0, (25, 2)).mean(1))
    assert built.width == features.shape[2] == 288 + 32
    assert encoder_facts(config).sources == ("demo", saved("whisper"))


def test_frames_at_any_rate() -> None:
    features = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[5.0], [7.0], [0.0], [0.0]]])
    mixed = at_frames(features, torch.tensor([4, 2]), torch.tensor([2, 3]), 3)
    torch.testing.assert_close(mixed[..., 0], torch.tensor([[0.5, 2.5, 0.0], [5.0, 6.0, 7.0]]))


def test_from_training_to_an_export(shard_folder: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    chosen = recipes.load("demo", [*LOW, f"run_dir={tmp_path / 'run'}", "precision=fp32", "plan.row_tokens=256"])
    shards, geometry = Shards(str(shard_folder)), FrameGeometry.from_config(chosen.model)
    assert geometry == FrameGeometry.from_config(small_recipe.model)  # the frames are those of the first
    torch.manual_seed(0)
    model = build_speech_llm(chosen.model, chosen.loss, torch.float32, CPU, tasks=len(shards.index.tasks)).train()
    trainable = model.trainable_parameters()
    assert {name.split(".")[1] for name in trainable if name.startswith("encoder.")} == {"beside"}
    assert (model.encoder.first.training, model.encoder.beside["low"].training) == (False, True)
    sizes = memory.sizes_of(chosen)
    assert sizes.trainable == sum(value.numel() for value in trainable.values())
    with Loader(shards, Plan(shards.index, chosen, geometry), rows_per_micro_batch=2) as loader:
        batch = next(iter(next(iter(loader)).micro_batches))
    losses = train_on(model, batch, steps=4, rate=1e-3)
    assert losses[-1] < losses[0]

    state = {name: value.detach().clone() for name, value in trainable.items()}
    checkpoint.save(chosen.run_dir, 4, Snapshot(state, {"none": torch.zeros(1)}, {"step": 4}))
    recipes.save(chosen, f"{chosen.run_dir}/recipe.yaml")
    run = open_run(chosen.run_dir, device="cpu")
    assert torch.equal(run.model.encoder.beside["low"].project.weight, state["encoder.beside.low.project.weight"])
    with pytest.raises(UserError, match="Ultravox layout is for Whisper encoders"):
        export(run, tmp_path / "ultravox", "ultravox")
    wave = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, _ = run.model.encoder(wave, torch.tensor([8_000]))
        # A merged export computes the miniature encoder's filters in float32; its weights file holds them in float16.
        for layout, tolerance in (("trained", 0.0), ("merged", 5e-3)):
            export(run, tmp_path / layout, layout)
            loaded = MtbiForConditionalGeneration.from_pretrained(tmp_path / layout).eval()
            torch.testing.assert_close(loaded.encoder(wave, torch.tensor([8_000]))[0], expected, rtol=0, atol=tolerance)
            assert "`demo`" in (tmp_path / layout / "README.md").read_text()


def test_trainable_ones_and_names() -> None:
    config = recipes.load("demo", LOW).model.encoder
    encoder = build_encoder(config, torch.float32, CPU)
    set_trainable(encoder, config)
    assert encoder_facts(config).trainable
    assert not any(parameter.requires_grad for parameter in encoder.first.parameters())
    with pytest.raises(UserError, match=r"model.encoder.beside.keys: give the encoder another name"):
        build_encoder(recipes.load("demo", ["model.encoder.beside.keys.path=demo"]).model.encoder, torch.float32, CPU)
    with pytest.raises(UserError, match=r"unknown key 'model.encoder.beside.low.pth'"):
        recipes.load("demo", ["model.encoder.beside.low.pth=demo"])
