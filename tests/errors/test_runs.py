"""Wrong runs: training, evaluation, chat, serving, export, benchmarks, and the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from errors.case import Case, World, both, copied, file, folder, lines, tone

from mtbi import recipe as recipes
from mtbi.engine import inputs
from mtbi.engine.ds_config import read_ds_config
from mtbi.errors import UserError

REPOSITORY = Path(__file__).parents[2]
GRID = "recipe: demo\nseeds: [1]\nevaluate: {test: shards}\narms: {plain: {label: plain, fields: []}}\n"


def untrained(name: str) -> Callable[[World], object]:
    """A run without a checkpoint."""
    return lambda _: recipes.save(recipes.load("demo"), f"{name}/recipe.yaml")


RUNS = [
    Case("no run", "evaluate run", ("run: no recipe.yaml in it", "`run_dir`"), folder("run")),
    Case(
        "a run without checkpoint",
        "chat run hello",
        ("run: no valid checkpoint yet", "train first: deepspeed"),
        untrained("run"),
    ),
    Case("nothing to serve", "serve run", ("run: no valid checkpoint yet", "train first"), untrained("run")),
    Case(
        "a damaged recipe of a run",
        "chat run hello",
        ("run/recipe.yaml: not readable as YAML",),
        both(folder("run"), file("run/recipe.yaml", "model: [")),
    ),
    Case(
        "a damaged checkpoint",
        "evaluate run",
        ("run: no valid checkpoint yet", "train first"),
        both(copied("run"), file("run/checkpoints/step-00000001/trainable.safetensors", "x")),
    ),
    Case(
        "a damaged record of the best checkpoint, and no shards",
        "evaluate run --shards shards",
        ("shards: no shards there", "`mtbi data shard`"),
        both(copied("run"), file("run/checkpoints/best.json", "{"), folder("shards")),
    ),
    Case(
        "a checkpoint of another recipe",
        "chat run hello",
        ("made by another recipe", "trainable parameters differ"),
        both(copied("run"), file("run/recipe.yaml", "model: {adapter: {hidden: 16}}")),
    ),
    Case(
        "no such checkpoint",
        "evaluate $run --checkpoint step-9",
        ("step-9: no checkpoint there", "`best`, `latest` or a folder"),
    ),
    Case("unknown device", "chat $run --device gpu hello", ("device 'gpu' cannot be used here", "choose cpu")),
    Case(
        "items without instruction",
        "evaluate $run --shards m.jsonl",
        ("m.jsonl, line 1: an item is a JSON object with `audio` and `instruction`",),
        lines("m.jsonl", {"audio": "a.wav"}),
    ),
    Case("no items", "evaluate $run --shards m.jsonl", ("m.jsonl: empty", "`audio` and `instruction`"), file("m.jsonl")),
    Case(
        "an item whose limit is no number",
        "evaluate $run --shards m.jsonl",
        ("m.jsonl, line 1: an item is a JSON object", "`max_new_tokens` and `start_s` are numbers"),
        both(lines("m.jsonl", {"audio": "a.wav", "instruction": "?", "max_new_tokens": "many"}), file("a.wav", "no sound\n")),
    ),
    Case(
        "an item whose audio is text",
        "evaluate $run --shards m.jsonl",
        ("m, item 1: a.wav: not readable as audio",),
        both(lines("m.jsonl", {"audio": "a.wav", "instruction": "?"}), file("a.wav", "no sound\n" * 99)),
    ),
    Case("a missing recording", "chat $run --audio a.wav what", ("a.wav: no such recording",)),
    Case("a recording without ending", "chat $run --audio a what", ("a: no such recording",)),
    Case(
        "a recording too long",
        "chat $run --audio a.wav what",
        ("a.wav: 6.0 s of speech", "trained on at most 5 s", "cut the recording"),
        file("a.wav", tone(6)),
    ),
    Case(
        "an empty key",
        "serve $run --port 0 --api-key-file key",
        ("--api-key-file key: empty", "leave it out"),
        file("key", "\n"),
    ),
    Case(
        "a key of two words",
        "serve $run --port 0 --api-key-file key",
        ("key is one line", "without spaces"),
        file("key", "a b"),
    ),
    Case("a missing key file", "serve $run --port 0 --api-key-file key", ("key: no such file",)),
    Case("a port out of range", "serve $run --port 99999", ("--port 99999", "must be 0-65535", "choose another port")),
    Case("export of nothing", "export run out", ("run: no recipe.yaml in it",), folder("run")),
    Case("export into a run", "export $run $run", ("not empty",)),
]
BENCHMARKS = [
    Case("unknown arm", "reproduce out --arms mtbee", ("--arms: choose of mtbi, multi_task",)),
    Case("unknown grid", "reproduce out --grid digitz", ("digitz: neither a file nor a shipped grid (digits)",)),
    Case(
        "a seed instead of seeds",
        "reproduce out --grid grid.yaml",
        ("grid.yaml: a grid: seeds must be a list, not 1",),
        file("grid.yaml", GRID.replace("[1]", "1")),
    ),
    Case(
        "an arm without label",
        "reproduce out --grid grid.yaml",
        ("grid.yaml: arm plain needs `label`",),
        file("grid.yaml", GRID.replace("label: plain, ", "")),
    ),
    Case(
        "a grid with a tab in its YAML",
        "reproduce out --grid grid.yaml",
        ("grid.yaml: not readable as YAML", "line 5"),
        file("grid.yaml", GRID + "\tx: 1"),
    ),
    Case("nothing to report", "reproduce out --report-only", ("out: no run is finished", "leave --report-only out")),
    Case("no speech for the demo", "demo --speech fsdd", ("fsdd: no such folder", "--speech needs the folder")),
]
COMMANDS = [
    Case("unknown command", "trian", ("invalid choice: 'trian'", "'evaluate'", "`mtbi --help`")),
    Case("unknown option", "evaluate $run --taks", ("unrecognized arguments: --taks", "`mtbi --help`")),
    Case("missing argument", "data import folder", ("required: source, out", "`mtbi data import --help`")),
    Case(
        "an LLM with layers other than attention",
        "plan demo model.llm=llm --gpus 1",
        ("model.llm: lfm2 has layers that are no attention (conv)", "Choose an LLM of attention layers only"),
        both(
            folder("llm"),
            file(
                "llm/config.json", '{"model_type": "lfm2", "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}'
            ),
        ),
    ),
    Case("an unknown recipe for the doctor", "doctor demmo", ("no recipe is called 'demmo'", "did you mean demo?")),
]


@pytest.mark.parametrize("case", RUNS + BENCHMARKS + COMMANDS, ids=lambda case: case.id)
def test_wrong_runs(case: Case, check_case: Callable[[Case], None]) -> None:
    check_case(case)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.shards=[]"], "data.shards is empty: name the folders or addresses made by `mtbi data shard`"),
        (["data.shards=[nowhere]"], "nowhere: no shards there"),
        (["behaviour.system_prompt=be brief"], "made with .*, another LLM, chat template or system prompt than the recipe's"),
        ([], "interleave.share is 0.5, but no utterance .* has word times: run `mtbi data align`"),
        (["interleave.share=0", "plan.max_audio_seconds=0.2"], "no utterance fits .* 1 are longer than 0.2 s"),
    ],
)
def test_training_without_usable_data(overrides: list[str], message: str, world: World) -> None:
    with pytest.raises(UserError, match=message):
        inputs.open_inputs(recipes.load("demo", [f"data.shards=[{world.shards}]", *overrides]))


def test_training_with_a_list_as_deepspeed_configuration(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("[]")
    with pytest.raises(UserError, match=r"zero\.json: not a DeepSpeed configuration.*Choose one of ds_configs/"):
        read_ds_config(tmp_path / "zero.json", recipes.load("demo"), 1, torch.float32)


def test_training_an_unknown_recipe() -> None:
    command = [sys.executable, str(REPOSITORY / "mtbi" / "train.py"), "--deepspeed", "zero.json", "--recipe", "demmo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mtbi: no recipe is called 'demmo': did you mean demo?")
    assert len(done.stderr.splitlines()) == 1
