"""Parts that another package adds: the example package is installed by pip, found by its entry points, and used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import train_on

from mtbi import plugins
from mtbi import recipe as recipes
from mtbi.batches.loader import Loader
from mtbi.batches.plan import Plan
from mtbi.cli import main
from mtbi.corpus.manifest import read_manifest
from mtbi.demo.world import DIGITS
from mtbi.engine import checkpoint, memory
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.log import Metrics
from mtbi.errors import UserError
from mtbi.model.adapter import KINDS
from mtbi.model.encoders.build import build_encoder, describe_encoder, empty_encoder, encoder_facts
from mtbi.model.encoders.protocol import Taps, taps_of
from mtbi.model.flops import LLMSize
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.shards.read import Shards
from mtbi.use.open_run import open_run

EXAMPLE = Path(__file__).with_name("plugin") / "example_package"
MODEL = ["model.adapter.kind=mean", "model.adapter.stack=8", "model.encoder.path=plugin:bands"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the example."""
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "packages"), str(folder / "source")], check=True)
    return folder / "packages"


@pytest.fixture
def installed(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(packages))


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed packages that add the same adapter, and one whose import fails."""
    for name, group, entry in (
        ("one", plugins.ADAPTERS, "twin = one:Adapter"),
        ("two", plugins.ADAPTERS, "twin = two:Adapter"),
        ("bad", plugins.IMPORTERS, "bad = bad_corpus:read"),
    ):
        info = tmp_path / f"{name}-2.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    (tmp_path / "bad_corpus.py").write_text("raise OSError('libcorpus.so is missing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_from_an_installed_importer_to_an_answer(
    corpus: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("source").mkdir()
    for utterance in corpus[1][:6]:
        numerals = "_".join(str(DIGITS.index(word)) for word in utterance.text.split())
        shutil.copy(corpus[0] / utterance.audio, Path("source") / f"{numerals}.flac")
    overrides = [*MODEL, "behaviour.library=[backwards]", "plan.row_tokens=256", "plan.rows_per_step=2", "interleave.share=0"]
    assert main(["tasks", "list", "digits", "content", "backwards"]) == 0
    assert "backwards: The digits in reverse order." in capsys.readouterr().out
    assert main(["data", "import", "named", "source", "data", "--text-style", "spelt"]) == 0
    assert main(["behave", "data/manifest.jsonl", "answers", *overrides]) == 0
    assert main(["data", "shard", "data/manifest.jsonl", "answers", "shards", *overrides]) == 0
    assert {utterance.text for utterance in read_manifest("data/manifest.jsonl")} == {u.text for u in corpus[1][:6]}

    recipe = recipes.load("demo", [*overrides, "data.shards=[shards]", "run_dir=run", "precision=fp32"])
    shards, geometry = Shards("shards", "cache"), FrameGeometry.from_config(recipe.model)
    assert shards.index.tasks == ["backwards"]
    assert geometry.frames(320 * 8 * 3 + 319) == 3
    torch.manual_seed(0)
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu")).train()
    trainable = model.trainable_parameters()
    assert all(name.startswith("adapter.kind.") for name in trainable)
    with Loader(shards, Plan(shards.index, recipe, geometry), rows_per_micro_batch=2) as loader:
        (batch,) = next(iter(loader)).micro_batches
    losses = train_on(model, batch, steps=3, rate=1e-2)
    assert losses[2] < losses[1] < losses[0]
    sizes = memory.sizes_of(recipe)
    assert (sizes.encoder, sizes.trainable) == (0, sum(value.numel() for value in trainable.values()))

    state = {name: value.detach() for name, value in trainable.items()}
    checkpoint.save("run", 3, Snapshot(state, {"none": torch.zeros(1)}, {"step": 3}))
    recipes.save(recipe, "run/recipe.yaml")
    assert torch.equal(open_run("run", device="cpu").model.adapter.kind.output.weight, state["adapter.kind.output.weight"])

    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(packages)])
    capsys.readouterr()
    assert main(["chat", "run", "hello"]) == 2
    message = capsys.readouterr().err
    assert "run/recipe.yaml: model.adapter.kind 'mean' is unknown." in message
    assert "install the package that adds it" in message


@pytest.mark.usefixtures("installed")
def test_an_installed_logger_gets_the_losses(tmp_path: Path) -> None:
    recipe = recipes.load("demo", [f"run_dir={tmp_path}", "train.loggers=[losses]"])
    metrics = Metrics(recipe, ["repeat"], True, 1, LLMSize(1000, 800, 300), torch.device("cpu"))
    metrics.scalars({"train/loss": 1.5, "train/learning_rate": 1e-3}, 10)
    metrics.close()
    assert (tmp_path / "losses.csv").read_text() == "10,1.5\n"


@pytest.mark.usefixtures("installed")
def test_a_recipe_is_checked_without_importing_the_package(packages: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(packages)!r}); from mtbi import recipe; recipe.load('demo', {MODEL!r}); "
        "print([name for name in ('torch', 'transformers', 'mtbi_example') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.usefixtures("installed")
def test_a_part_that_does_not_keep_to_its_shapes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, cpu = recipes.load("demo", MODEL), torch.device("cpu")
    recipe.model.adapter.queries = 2
    with pytest.raises(UserError, match=r"'mean' makes \(1, 3, 128\) of 17 frames.* must be \(1, 6, 128\)"):
        build_speech_llm(recipe.model, recipe.loss, torch.float32, cpu)
    import mtbi_example.encoder

    monkeypatch.setattr(mtbi_example.encoder, "stages", lambda config: (((1, 320),), None))
    with pytest.raises(UserError, match=r"\[1, 13, 50\] frames.* its stages say \[1, 14, 50\]"):
        build_speech_llm(recipe.model, recipe.loss, torch.float32, cpu)


@pytest.mark.usefixtures("installed")
def test_an_installed_encoder_may_describe_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipes.load("demo", MODEL).model.encoder
    with pytest.raises(UserError, match=r"plugin:bands has no `describe` and `empty`.*: export with --layout trained"):
        describe_encoder(config)
    import mtbi_example.encoder as example

    monkeypatch.setattr(example, "describe", lambda config: {"layer": config.layer}, raising=False)
    monkeypatch.setattr(example, "empty", lambda description: example.Bands(torch.float32), raising=False)
    assert describe_encoder(config) == {"model_type": "plugin:bands", "layer": -1}
    assert isinstance(empty_encoder(describe_encoder(config)), example.Bands)
    assert encoder_facts(config).output_name == "plugin:bands layer -1"


@pytest.mark.usefixtures("installed")
def test_an_installed_encoder_may_give_several_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = recipes.load("demo", [*MODEL, "model.encoder.layers=[0,4]"]).model.encoder, torch.device("cpu")
    with pytest.raises(UserError, match=r"model\.encoder\.layers: 'plugin:bands' has no `output_layers`"):
        build_encoder(config, torch.float32, cpu)
    import mtbi_example.encoder as example

    monkeypatch.setattr(example.Bands, "output_layers", (0, 4), raising=False)
    encoder = build_encoder(config, torch.float32, cpu)
    assert taps_of(encoder) == {"": Taps((0, 4), example.BANDS // 2)}


@pytest.mark.usefixtures("installed")
def test_unknown_names_are_answered_with_all_names_and_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"'means' is unknown: did you mean 'mean'\? Shipped: mlp, .*conformer\. Installed .*: mean"
    ):
        recipes.load("demo", ["model.adapter.kind=means"])
    recipe = recipes.load("demo", ["model.encoder.path=plugin:band:/weights"])
    with pytest.raises(UserError, match=r"plugin 'band' is unknown: did you mean 'bands'\? Installed"):
        FrameGeometry.from_config(recipe.model)


def test_recipes_know_the_shipped_adapters() -> None:
    assert tuple(KINDS) == recipes.CHOICES["model.adapter.kind"]


@pytest.mark.usefixtures("broken")
def test_broken_and_doubled_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus kind 'bad': the package bad 2\.1 cannot be imported: OSError.*libcorpus"):
        plugins.find(plugins.IMPORTERS, "bad", {}, "corpus kind")
    with pytest.raises(UserError, match=r"'twin' is in several packages: (one 2\.1, two 2\.1|two 2\.1, one 2\.1)"):
        recipes.load("demo", ["model.adapter.kind=twin"])
