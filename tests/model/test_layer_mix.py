"""The weighted sum of several encoder layers."""

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
from mtbi.model.adapter import build_adapter
from mtbi.model.encoders.protocol import Taps
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.layer_mix import SPEED, build_mix
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import AdapterConfig
from mtbi.shards.read import Shards
from mtbi.use.open_run import open_run


def test_the_sum_is_the_weighted_one_and_other_encoders_stay_as_they_are() -> None:
    mix = build_mix({"": Taps((0, 2, 3), 2), "low": Taps((1,), 3), "high": Taps((4, 5), 1)})
    assert mix is not None
    assert {name: tuple(value.shape) for name, value in mix.named_parameters()} == {"scores": (3,), "scores_high": (2,)}
    features = torch.arange(22.0).view(1, 2, 11)
    expected = torch.cat(
        [features[..., :6].unflatten(2, (3, 2)).mean(2), features[..., 6:9], features[..., 9:].mean(2, True)], 2
    )
    torch.testing.assert_close(mix(features), expected)
    with torch.no_grad():
        mix.scores.copy_(torch.tensor([0.0, 3.0, 0.0]))  # nearly all of the weight on layer 2
    torch.testing.assert_close(mix(features)[..., :2], features[..., 2:4])
    assert list(mix.weights) == [
        "layer_weight/0",
        "layer_weight/2",
        "layer_weight/3",
        "layer_weight/high_4",
        "layer_weight/high_5",
    ]
    assert float(mix.weights["layer_weight/2"]) == pytest.approx(torch.tensor([0.0, 3.0, 0.0]).mul(SPEED).softmax(0)[1].item())


def test_one_layer_needs_no_sum() -> None:
    assert build_mix({"": Taps((3,), 8), "low": Taps((1,), 4)}) is None
    assert "mix" not in dict(build_adapter(AdapterConfig(stack=2), 8, 16).named_children())


def test_what_a_mask_hides_is_hidden_in_the_sum() -> None:
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig(stack=2, hidden=16), 16, 12, taps={"": Taps((1, 2), 8)})
    features, lengths = torch.randn(2, 6, 16), torch.tensor([6, 4])
    channels = torch.zeros(2, 8, dtype=torch.bool)
    channels[:, 3] = True  # one of the sum's 8 channels
    changed = features.clone()
    changed[:, 1, 3] += 5.0
    changed[:, 1, 11] -= 5.0  # the same channel of the other layer: the clip's mean of the sum stays
    frames = torch.zeros(2, 6, dtype=torch.bool)
    seen, hidden = (adapter(each, lengths, frames, channels)[0] for each in (features, changed))
    torch.testing.assert_close(seen, hidden)


def test_the_weights_train_are_logged_and_are_in_checkpoints(shard_folder: Path, tmp_path: Path) -> None:
    fields = ["model.encoder.layers=[1,3]", "model.encoder.beside.low.path=demo", "model.encoder.beside.low.layers=all"]
    recipe = recipes.load("demo", [*fields, f"run_dir={tmp_path / 'run'}", "precision=fp32", "plan.row_tokens=256"])
    shards = Shards(str(shard_folder))
    torch.manual_seed(0)
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"), len(shards.index.tasks)).train()
    trainable = model.trainable_parameters()
    assert {name for name in trainable if ".mix." in name} == {"adapter.mix.scores", "adapter.mix.scores_low"}
    assert memory.sizes_of(recipe).trainable == sum(value.numel() for value in trainable.values())
    plan = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))
    with Loader(shards, plan, rows_per_micro_batch=2) as loader:
        batch = next(iter(next(iter(loader)).micro_batches))
    losses = train_on(model, batch, steps=4, rate=1e-3)
    assert losses[-1] < losses[0]
    means = {name: mean.tolist() for name, mean in model(batch).means.items() if name.startswith("layer_weight/")}
    assert list(means) == ["layer_weight/1", "layer_weight/3", *(f"layer_weight/low_{layer}" for layer in range(4))]
    assert sum(weight for weight, _ in means.values()) == pytest.approx(2)  # of two encoders
    assert all(count == 1 for _, count in means.values())
    assert means["layer_weight/1"][0] != pytest.approx(0.5, abs=1e-4)
    assert not model.eval()(batch).means.keys() & means.keys()

    state = {name: value.detach().clone() for name, value in trainable.items()}
    checkpoint.save(recipe.run_dir, 4, Snapshot(state, {"none": torch.zeros(1)}, {"step": 4}))
    recipes.save(recipe, f"{recipe.run_dir}/recipe.yaml")
    run = open_run(recipe.run_dir, device="cpu")
    assert torch.equal(run.model.adapter.mix.scores_low, state["adapter.mix.scores_low"])
