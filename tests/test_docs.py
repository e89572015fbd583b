"""The documentation: every command line in it is one that works, every quoted message exists, and the site builds."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from transformers import LlamaConfig, WhisperConfig

from launcher import submit
from launcher.ranks import free_port
from mtbi import recipe as recipes
from mtbi import train
from mtbi.answers import task_library
from mtbi.benchmark.intervals import MeanOverSeeds
from mtbi.cli import build_parser, main
from mtbi.corpus.importers import IMPORTERS
from mtbi.corpus.manifest import ALIASES, Utterance, read_manifest
from mtbi.corpus.text_style import STYLES
from mtbi.errors import UserError
from mtbi.model.adapter import KINDS

REPOSITORY = Path(__file__).parents[1]
#: Pages whose commands need the packages that tests/test_plugins.py and tests/test_extend.py install.
WITH_PACKAGES = {"plugins", "extend"}
PAGES = [
    REPOSITORY / "README.md",
    *(page for page in sorted((REPOSITORY / "docs").glob("*.md")) if page.stem not in WITH_PACKAGES),
]
#: What stands for a recipe that the reader chooses.
PLACEHOLDERS = {"RECIPE", "NAME"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(\.venv/bin/)?(mtbi|deepspeed|sbatch|python -m launcher|python mtbi/train\.py) ")
CODE = re.compile(r"(`+)(.+?)\1")
#: What the walks through a page's commands change in them, so that they take seconds: each text occurs in the page.
SMALLER = {
    "tutorial.md": {
        "voices=6, recordings=8": "voices=2, recordings=2",
        "strings=1000": "strings=40",
        "strings=100,": "strings=8,",
        "--num_accelerators 2": "--num_accelerators 1",
        "train.steps=300\n": "train.steps=3 train.eval_utterances=4 train.sample_dialogues=1\n",
        "--dialogues 400": "--dialogues 10 --no-controls",
    },
    "your-corpus.md": {
        "whisper-large-v3_qwen3-8b": "demo",
        "openai/whisper-base": "demo",
        "run_dir=work/run": "run_dir=work/run data.eval_shards=[] train.steps=3",
    },
}


def fenced(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def command_lines() -> list[str]:
    """Every command line in the shell blocks of all pages."""
    blocks = [block for page in PAGES for block in fenced(page, "", "sh")]
    lines = [line for block in blocks for line in re.sub(r" *\\\n *", " ", block).splitlines()]
    return list(dict.fromkeys(line for line in lines if COMMAND.match(line)))


def parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command line and the recipe that it names. Raises as the command would."""
    words = shlex.split(line.removeprefix(".venv/bin/"), comments=True)
    words = ["demo" if word in PLACEHOLDERS else word for word in words]
    script = next((word for word in words if word.endswith((".sh", "train.py"))), "")
    rest = words[words.index(script) + 1 :] if script else words[1:]
    if script in ("mtbi/train.py", "slurm/train.sh"):
        given = rest if script.endswith(".py") else ["--deepspeed", "ds_configs/zero3.json", *rest]
        monkeypatch.setattr(sys, "argv", [script, *given])
        options, _ = train.parse_arguments()
        assert (REPOSITORY / options.deepspeed).is_file()
        return
    if words[:3] == ["python", "-m", "launcher"]:
        options = submit.build_parser().parse_args(words[3:])
    else:
        stages = {"slurm/align.sh": ["data", "align"], "slurm/data.sh": ["data"], "slurm/behave.sh": ["behave"]}
        options, loose = build_parser().parse_known_args([*stages.get(script, []), *rest])
        assert not any(word.startswith("-") for word in loose), loose
        if loose:
            getattr(options, "overrides" if hasattr(options, "overrides") else "prompt").extend(loose)
    if hasattr(options, "overrides") and (recipe := getattr(options, "recipe", "demo")):
        recipes.load(recipe, options.overrides)


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(line, monkeypatch)


def test_a_wrong_command_line_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    start = "deepspeed mtbi/train.py --deepspeed ds_configs/zero3.json"
    for wrong in ("mtbi behave a b trian.steps=1", "mtbi chat a --adio b", "mtbi data check a b", f"{start} --recpie demo"):
        with pytest.raises((AssertionError, AttributeError, UserError, SystemExit)):
            parse(wrong, monkeypatch)
    assert len(command_lines()) > 40


@cache
def spoken() -> list[str]:
    """Every text in the code; `…` stands for what is filled in."""
    texts = []
    for folder in ("mtbi", "launcher"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def quoted_messages() -> list[str]:
    """The messages in the tables of the page about them."""
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return [message for _, message in re.findall(r"^\| (`+)(.+?)\1 \|", text, re.MULTILINE)]


@pytest.mark.parametrize("message", quoted_messages())
def test_every_quoted_message_exists(message: str) -> None:
    fixed = ".*".join(re.escape(part) for part in message.split("…"))
    assert any(re.search(fixed, text, re.DOTALL) for text in spoken())


def table(page: str, header: str) -> set[str]:
    """The names in code in the first column of the table with that first header."""
    rows = (REPOSITORY / "docs" / page).read_text(encoding="utf-8").partition(f"| {header} |")[2].partition("\n\n")[0]
    firsts = [line.split("|")[1] for line in rows.splitlines()[2:]]
    return {name for first in firsts for _, name in CODE.findall(first)}


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "docs" / "plugins.md"], ids=lambda page: page.stem)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:mtbi|launcher|tests|tools|slurm|ds_configs)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert not [path for path in named if not (REPOSITORY / path).exists()]


def test_every_guarantee_names_its_code_and_its_test() -> None:
    text = (REPOSITORY / "docs" / "guarantees.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 30
    assert not [row[1] for row in rows if len(row) != 5 or "tests/" not in row[3]]


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (REPOSITORY / link).exists()]


def published(arm: str) -> MeanOverSeeds:
    """The accuracy in per cent of an arm on tasks that it never trained, from the stored runs with all of the speech."""
    key = "test_known: never-trained tasks"
    runs = json.loads((REPOSITORY / "benchmarks" / "generalisation" / "results.json").read_text(encoding="utf-8"))["runs"]
    shares = [100 * run["right"][key] / run["dialogues"][key] for run in runs if re.fullmatch(rf"{arm}/seed-\d", run["run"])]
    assert len(shares) == 3
    return MeanOverSeeds.of(shares)


def test_the_result_of_the_readme_is_that_of_the_stored_runs() -> None:
    result = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## One result")[2].partition("\n## ")[0]
    best, shorter, single = published("mtbi_500"), published("mtbi"), published("single_task")
    stated = [float(number) for number in re.findall(r"\d+\.\d", result.partition("An example")[0])]
    computed = [best.value, best.low, best.high, shorter.value, single.value]
    assert stated == [round(number, 1) for number in computed]


def test_the_corpus_page_lists_what_there_is() -> None:
    text = (REPOSITORY / "docs" / "your-corpus.md").read_text(encoding="utf-8")
    assert table("your-corpus.md", "kind") == set(IMPORTERS)
    assert table("your-corpus.md", "field") == set(Utterance.__dataclass_fields__) - {"extra"}
    assert all(f"`{name}`" in text for name in ALIASES)
    assert all(f"`{name}`" in text or f"--text-style {name}" in text for name in STYLES)


def test_the_examples_of_task_files_are_some(tmp_path: Path) -> None:
    found = []
    for example in fenced(REPOSITORY / "docs" / "your-task.md", "yaml"):
        (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
        found.append(set(task_library.load([str(tmp_path / "mine.yaml")])))
    assert found == [{"action_items", "urgency", "urgency/lower_case"}, {"summary_then_questions"}]
    assert table("your-task.md", "key") >= set(task_library.Task.__dataclass_fields__) - {"name"}


def test_the_models_page_lists_what_there_is() -> None:
    assert table("your-models.md", "`model.adapter.kind`") == set(KINDS)


def test_the_example_of_a_recipe_is_one(tmp_path: Path) -> None:
    (example,) = fenced(REPOSITORY / "docs" / "your-models.md", "yaml")
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    assert recipes.load(tmp_path / "mine.yaml").model.encoder.layer == 18


def test_the_tables_to_expect_are_those_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With models of the same shape, as configurations only."""
    LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    ).save_pretrained(tmp_path / "llama")  # fmt: skip
    WhisperConfig(
        num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120, decoder_layers=1,
        decoder_attention_heads=20,
    ).save_pretrained(tmp_path / "whisper")  # fmt: skip
    page = REPOSITORY / "docs" / "what-to-expect.md"
    commands = re.findall(r"^`mtbi (plan \S+) (.*?)`", page.read_text(encoding="utf-8"), re.MULTILINE)
    shown = fenced(page, "")
    assert len(commands) == len(shown) == 2
    for (start, options), expected in zip(commands, shown, strict=True):
        models = [f"model.llm={tmp_path}/llama", f"model.encoder.path={tmp_path}/whisper"]
        assert main([*start.split(), *models, *options.split()]) == 0
        assert capsys.readouterr().out == expected


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, env=quiet, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', text)
        assert not [one for pair in loaded for one in pair if one.startswith(("http", "//"))], page
    assert "<math" in (tmp_path / "method.html").read_text(encoding="utf-8")
    assert (tmp_path / "benchmarks" / "generalisation" / "similarity.png").is_file()


def walk(page: str, folder: Path) -> str:
    """Run the `sh` blocks of a page, made smaller, in a folder that has what the repository's root has; returns the output."""
    script = "\n".join(fenced(REPOSITORY / "docs" / page, "sh"))
    for text, smaller in SMALLER[page].items():
        assert text in script, f"{page} no longer has {text!r}"
        script = script.replace(text, smaller)
    script = re.sub(r"^deepspeed ", f"deepspeed --master_port {free_port()} ", script, flags=re.MULTILINE)
    for name in ("mtbi", "ds_configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    shell, path = ["bash", "-euo", "pipefail", "-c", script], f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    output = walk("tutorial.md", tmp_path)
    assert "done: 3 steps" in output
    assert "new tasks" in output


@pytest.mark.slow
def test_a_folder_of_recordings_trains_in_five_commands(speech: Path, tmp_path: Path) -> None:
    (commands,) = fenced(REPOSITORY / "docs" / "your-corpus.md", "sh")
    assert len(commands.replace("\\\n", "").splitlines()) == 5
    source = speech / "librispeech_train_clean_3spk"
    for utterance in read_manifest(source / "manifest.jsonl")[::12]:
        place = tmp_path / "recordings" / utterance.speaker / Path(utterance.audio).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / utterance.audio, place)
        place.with_suffix(".txt").write_text(utterance.text, encoding="utf-8")
    place.with_suffix(".txt").unlink()
    output = walk("your-corpus.md", tmp_path)
    assert "rejected 1" in output
    assert "done: 3 steps" in output
