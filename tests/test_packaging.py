"""The wheel holds every file that the package reads, works outside the repository, and declares every import."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("mtbi", "launcher")
OPTIONAL = {"vllm", "flash-attn", "wandb", "mlflow"}  #: may not be installed, so that no distribution is known for them


def canonical(name: str) -> str:
    """A distribution's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_setup() -> ConfigParser:
    """The content of setup.cfg."""
    config = ConfigParser(interpolation=None)
    config.read(REPOSITORY / "setup.cfg")
    return config


def declared() -> set[str]:
    """Every distribution that setup.cfg names."""
    config = read_setup()
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return {canonical(found[0]) for text in texts for line in text.splitlines() if (found := re.match(r"[\w.-]+", line))}


def required_by(lines: Iterable[str]) -> dict[str, SpecifierSet]:
    """The versions that requirements ask for here, by distribution; those of extras are left out."""
    parsed = [Requirement(line) for line in lines]
    wanted = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return {canonical(one.name): one.specifier for one in wanted}


def imported() -> set[str]:
    """Every top-level module that the packages import, their own and the standard library's left out."""
    found = set()
    for path in (path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


def test_whatever_is_imported_is_declared() -> None:
    owners = packages_distributions()
    named = {module: {canonical(owner) for owner in owners.get(module, [module])} for module in imported()}
    assert {module: owner for module, owner in named.items() if not owner & declared()} == {}


def test_every_dependency_is_in_the_document() -> None:
    text = (REPOSITORY / "docs" / "dependencies.md").read_text(encoding="utf-8")
    documented = {canonical(name) for name in re.findall(r"^\| ([\w.-]+) \|", text, re.MULTILINE)}
    assert declared() - documented == set()


def test_what_streaming_requires_is_required_here() -> None:
    theirs = required_by(metadata.requires("mosaicml-streaming") or [])
    lines = read_setup()["options"]["install_requires"].split("\n")
    ours = required_by(line for line in lines if line and not line.startswith("#"))
    assert theirs.keys() - ours.keys() == set()
    assert "mosaicml-streaming" not in ours  # or pip would choose transformers 4


def test_the_environment_is_what_its_packages_ask_for_except_two_bounds_of_streaming() -> None:
    waiting, seen, broken = [*declared() - OPTIONAL], set(), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for other, specifier in required_by(metadata.requires(name) or []).items():
            if not specifier.contains(metadata.version(other), prereleases=True):
                broken.add((name, other))
            if other not in seen:
                waiting.append(other)
    assert broken <= {("mosaicml-streaming", "transformers"), ("mosaicml-streaming", "numpy")}


def test_one_command_installs_streaming_everywhere() -> None:
    for path in ("tools/setup.sh", "docs/index.md", "docs/real-run.md", "docs/dependencies.md", "mtbi/mds.py"):
        assert re.search(r"install .*--no-deps mosaicml-streaming", (REPOSITORY / path).read_text(encoding="utf-8")), path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist", folder],
        check=True,
    )
    [wheel] = (folder / "dist").iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def outside(command: list[str], installed: Path, folder: Path) -> str:
    """The output of a command in another folder, with the installed packages first."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file(installed: Path) -> None:
    for package in PACKAGES:
        files = {path.relative_to(REPOSITORY) for path in (REPOSITORY / package).rglob("*") if path.is_file()}
        missing = {file for file in files if "__pycache__" not in file.parts and not (installed / file).is_file()}
        assert missing == set()


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; began = time.perf_counter(); import mtbi; seconds = time.perf_counter() - began; "
        "print(mtbi.__file__, seconds < 1, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert outside([sys.executable, "-c", script], installed, tmp_path) == f"{installed}/mtbi/__init__.py True []\n"
    shown = outside([str(installed / "bin" / "mtbi"), "recipe", "show", "demo"], installed, tmp_path)
    assert "\nname: demo" in f"\n{shown}"
    listed = outside([str(installed / "bin" / "mtbi"), "tasks", "list"], installed, tmp_path)
    assert "reverse: " in listed
