"""The page on additions: each has three steps, and the steps work as they are written."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from mtbi import recipe as recipes
from mtbi.batches.loader import Loader
from mtbi.benchmark import scores
from mtbi.benchmark.dialogues import Dialogue
from mtbi.cli import build_parser, main
from mtbi.corpus.manifest import read_manifest, write_manifest
from mtbi.engine.inputs import open_inputs
from mtbi.model.speech_llm import build_speech_llm

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
TITLES = {section.partition("\n")[0]: section for section in SECTIONS}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`([\w/.-]+\.\w+)`")


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """The blocks of code in a language, each with the last path that the paragraph before it names."""
    found, end = [], 0
    for fence in FENCE.finditer(text):
        paths = PATH.findall(text[end : fence.start()].strip().split("\n\n")[-1])
        end = fence.end()
        if fence[1] == language:
            found.append((paths[-1] if paths else "", fence[2]))
    return found


def commands(title: str) -> list[list[str]]:
    """The `mtbi` commands of a section, as lists of words."""
    lines = [line for _, code in blocks(TITLES[title], "sh") for line in code.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("mtbi ")]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the package of the page, with every part that its sections add."""
    folder = tmp_path_factory.mktemp("extend")
    settings = "".join(code for text in (INTRODUCTION, *SECTIONS) for _, code in blocks(text, "toml"))
    for path, code in (pair for section in SECTIONS for pair in blocks(section, "python") if pair[0].startswith("my_parts/")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(code, encoding="utf-8")
    (folder / "my_parts" / "my_parts" / "__init__.py").touch()
    (folder / "my_parts" / "pyproject.toml").write_text(settings, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "packages"), str(folder / "my_parts")], check=True)
    return folder / "packages"


@pytest.fixture
def workplace(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the package installed and the page's YAML and JSON files."""
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.chdir(tmp_path)
    for path, code in (pair for section in SECTIONS for kind in ("yaml", "json") for pair in blocks(section, kind)):
        (tmp_path / path).write_text(code, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("title", TITLES)
def test_an_addition_has_three_steps(title: str) -> None:
    assert re.findall(r"^\*\*(\d)\.\*\* ", TITLES[title], re.MULTILINE) == ["1", "2", "3"]
    for words in commands(title):
        build_parser().parse_args(words)


def test_a_task(corpus: tuple, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest("manifest.jsonl", corpus[1][:6])
    trial, behave = commands("A task")
    assert main(trial) == 0
    assert "three two one" in capsys.readouterr().out
    assert main(behave) == 0
    assert '"backwards"' in (workplace / "answers" / "chunk-000000.jsonl").read_text(encoding="utf-8")


def test_an_importer(corpus: tuple, workplace: Path) -> None:
    texts = {utterance.text: utterance.audio for utterance in corpus[1][:3]}
    (workplace / "recordings").mkdir()
    for text, audio in texts.items():
        shutil.copy(corpus[0] / audio, workplace / "recordings" / f"{text.replace(' ', '_')}.flac")
    (importing,) = commands("An importer")
    assert main(importing) == 0
    assert {utterance.text for utterance in read_manifest("corpus/manifest.jsonl")} == set(texts)


def code_for(title: str, path: str) -> str:
    """The Python code that a section adds to a file."""
    (code,) = (code for name, code in blocks(TITLES[title], "python") if name == path)
    return code


@pytest.mark.usefixtures("workplace")
def test_a_second_encoder() -> None:
    (show,) = commands("A second encoder")
    assert main(show) == 0
    alone = recipes.load("demo", ["model.encoder.path=plugin:loudness"])
    beside = recipes.load("two_encoders.yaml")
    built = {}
    for name, recipe in (("demo", recipes.load("demo")), ("alone", alone), ("beside", beside)):
        built[name] = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu")).encoder
    waveforms, lengths = torch.rand(2, 16_000), torch.tensor([16_000, 9_000])
    features, frames = built["beside"](waveforms, lengths)
    first, first_frames = built["demo"](waveforms, lengths)
    assert built["alone"].width == 1
    assert features.shape == (2, first.shape[1], first.shape[2] + 1)
    assert frames.tolist() == first_frames.tolist()
    assert torch.equal(features[..., :-1], first)
    assert features[0, :, -1].abs().min() > 0


def test_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtbi import metrics
    from mtbi.metrics import records

    added = eval(code_for("A metric", "mtbi/metrics/records.py"), dict(vars(records)))
    monkeypatch.setattr(scores, "METRICS", (*scores.METRICS, added))

    def dialogue(task: str, gold: str, text_llm: str, speech_llm: str) -> Dialogue:
        answers = {metrics.TEXT_LLM: text_llm, metrics.SPEECH: speech_llm}
        return Dialogue("known", "u", "s", task, 0, "?", False, False, gold, gold, "", "exact", answers=answers)

    names = {"dialogue": dialogue, "summarise": scores.summarise}
    exec(code_for("A metric", "tests/benchmark/test_scores.py"), names)
    names["test_the_first_word_counts"]()  # type: ignore[operator]
    cell = scores.summarise("known", "repeat", "all", "after", [dialogue("repeat", "two one", "two one", "two three")])
    assert "first word" in scores.render([cell])
    assert scores.from_json(scores.to_json(cell)) == cell


def test_a_loss() -> None:
    from mtbi.model.losses import head
    from mtbi.recipe.sections import training

    names: dict[str, Any] = {**vars(training), **vars(head)}
    exec(code_for("A loss", "mtbi/model/losses/smoothed.py"), names)
    exec(f"@dataclass\nclass LossConfig(LossConfig):\n    {code_for('A loss', 'mtbi/recipe/sections/training.py')}", names)
    source = inspect.getsource(head.build_head)
    assert source.count("ImitationLoss(config)") == 1
    exec(source.replace("ImitationLoss(config)", f"({code_for('A loss', 'mtbi/model/losses/head.py')})"), names)
    torch.manual_seed(0)
    output, hidden = nn.Linear(8, 12, bias=False).requires_grad_(False), torch.randn(5, 8, requires_grad=True)
    ids = torch.arange(5)
    batch = SimpleNamespace(target_ids=ids, target_weight=torch.ones(5), target_task=torch.zeros(5, dtype=torch.long))
    config = names["LossConfig"](smoothing=0.2, chunk=2)
    result = names["build_head"](output, config, 1, SimpleNamespace())(hidden, batch)
    expected = functional.cross_entropy(output(hidden), ids, reduction="sum", label_smoothing=0.2)
    assert torch.allclose(result.loss, expected)
    gradient, same = (torch.autograd.grad(loss, hidden)[0] for loss in (result.loss, expected))
    assert torch.allclose(gradient, same, atol=1e-6)


def test_new_tokens(corpus: tuple, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    utterances = [replace(u, audio=str(corpus[0] / u.audio)) for u in corpus[1][:6]]
    for utterance in utterances:
        first, rest = utterance.text.split(" ", 1)
        utterance.answers = {"speakers": f"<speaker1> {first} <speaker2> {rest}"}
    write_manifest("manifest.jsonl", utterances)
    for command in commands("New tokens"):
        assert main(command) == 0, capsys.readouterr().err
    recipe = recipes.load("my_recipe.yaml", ["data.shards=[shards]", "plan.row_tokens=256", "plan.rows_per_step=1"])
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu")).train()
    rows = {name: value for name, value in model.trainable_parameters().items() if "new_rows" in name}
    assert [len(value) for value in rows.values()] in ([2], [2, 2])
    inputs = open_inputs(recipe)
    with Loader(inputs.shards, inputs.plan, rows_per_micro_batch=1) as loader:
        (batch,) = next(iter(loader)).micro_batches
    model(batch).loss.backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in rows.values())


def test_a_text_source(shard_folder: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(shard_folder, workplace / "shards")
    for command in commands("A text source"):
        assert main(command) == 0, capsys.readouterr().err
    both = open_inputs(recipes.load("mixture.yaml"))
    assert (both.shards.index.utterances["samples"] == 0).sum() == 2
    small = ["plan.rows_per_step=1", "plan.row_tokens=128"]
    alone = recipes.load(
        "mixture.yaml", ["data.shards=[text_shards]", "data.weights={text_shards: 1}", "interleave.share=0", *small]
    )
    inputs = open_inputs(alone)
    model = build_speech_llm(alone.model, alone.loss, torch.float32, torch.device("cpu"), len(inputs.shards.index.tasks))
    with Loader(inputs.shards, inputs.plan, rows_per_micro_batch=1) as loader:
        (batch,) = next(iter(loader)).micro_batches
    assert batch.audio_slot.numel() == 0
    assert batch.target_slot.numel() > 0
    assert float(model(batch).loss.detach()) < 0.01 * batch.target_slot.numel()  # the LLM reads what it answered
