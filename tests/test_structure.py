"""The structure of the repository: the order of its folders, the size of its parts, and the pages that describe them."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
#: What `mtbi/` holds, low to high. A part imports only what stands before it; the imports of a folder's own files are free.
ORDER = (
    "errors", "files", "versions", "plugins", "text_units", "metrics", "scenes", "mds", "object_store", "pictures", "terminal",
    "moved", "recipe", "audio", "llm", "corpus", "answers", "shards", "batches", "model", "engine", "train",
    "hf", "use", "benchmark", "demo", "doctor", "cli", "__init__",
)  # fmt: skip
#: Folders whose files and functions have a longest length.
MEASURED = ("mtbi", "launcher", "tools")
LONGEST_FILE_LINES, LONGEST_FUNCTION_LINES = 350, 60
#: The one function that may be longer: the training run is read as a story, from top to bottom.
STORY = ("mtbi/train.py", "train")
#: Modules without a test file of their own name, and the test that covers them.
COVERED_BY = {
    "launcher/__main__.py": "tests/launcher/test_submit.py",
    "mtbi/audio/decoding.py": "tests/audio/test_codec.py",
    "mtbi/batches/draw.py": "tests/batches/test_plan.py",
    "mtbi/benchmark/dialogues.py": "tests/benchmark/test_run.py",
    "mtbi/benchmark/grid/plots.py": "tests/benchmark/grid/test_reproduce.py",
    "mtbi/benchmark/grid/report.py": "tests/benchmark/grid/test_findings.py",
    "mtbi/cli/__main__.py": "tests/test_packaging.py",
    "mtbi/cli/answers.py": "tests/cli/test_command.py",
    "mtbi/cli/arguments.py": "tests/cli/test_command.py",
    "mtbi/cli/corpus.py": "tests/cli/test_command.py",
    "mtbi/cli/recipes.py": "tests/cli/test_command.py",
    "mtbi/cli/runs.py": "tests/cli/test_command.py",
    "mtbi/cli/scenes.py": "tests/scenes/test_score.py",
    "mtbi/cli/shards.py": "tests/cli/test_command.py",
    "mtbi/cli/use.py": "tests/cli/test_command.py",
    "mtbi/corpus/aligner.py": "tests/corpus/test_align.py",
    "mtbi/demo/corpus.py": "tests/test_end_to_end.py",
    "mtbi/demo/grid_data.py": "tests/benchmark/grid/test_reproduce.py",
    "mtbi/demo/pretrain_encoder.py": "tests/demo/test_encoder.py",
    "mtbi/demo/run.py": "tests/test_end_to_end.py",
    "mtbi/doctor.py": "tests/cli/test_command.py",
    "mtbi/errors.py": "tests/errors/test_inputs.py",
    "mtbi/hf/configuration.py": "tests/use/test_export.py",
    "mtbi/hf/modeling.py": "tests/hf/test_frozen.py",
    "mtbi/hf/processing.py": "tests/use/test_export.py",
    "mtbi/hf/ultravox.py": "tests/use/test_export.py",
    "mtbi/hf/ultravox_processing.py": "tests/use/test_export.py",
    "mtbi/llm/zero3_loading.py": "tests/engine/test_zero3.py",
    "mtbi/metrics/kinds.py": "tests/metrics/test_records.py",
    "mtbi/model/encoders/pretrained.py": "tests/model/encoders/test_build.py",
    "mtbi/model/encoders/protocol.py": "tests/model/encoders/test_build.py",
    "mtbi/model/frame_counts.py": "tests/model/encoders/test_build.py",
    "mtbi/model/miniature.py": "tests/model/test_self_test.py",
    "mtbi/pictures.py": "tests/engine/test_log.py",
    "mtbi/recipe/fields.py": "tests/recipe/test_schema.py",
    "mtbi/recipe/sections/augment.py": "tests/recipe/test_schema.py",
    "mtbi/recipe/sections/data.py": "tests/recipe/test_schema.py",
    "mtbi/recipe/sections/model.py": "tests/recipe/test_schema.py",
    "mtbi/recipe/sections/training.py": "tests/recipe/test_schema.py",
    "mtbi/shards/index_sums.py": "tests/shards/test_index.py",
    "mtbi/train.py": "tests/engine/test_train.py",
    "mtbi/use/layouts.py": "tests/use/test_export.py",
    "mtbi/use/serve/api_types.py": "tests/use/serve/test_api.py",
    "mtbi/use/serve/messages.py": "tests/use/serve/test_api.py",
    "mtbi/use/serve/middleware.py": "tests/use/serve/test_limits.py",
    "mtbi/use/serve/queue.py": "tests/use/serve/test_server.py",
    "mtbi/use/serve/replies.py": "tests/use/serve/test_server.py",
    "mtbi/versions.py": "tests/engine/test_agreement.py",
}


@cache
def tree(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    """Every Python file below these folders of the repository, in order."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def name(path: Path) -> str:
    """A path as it is written in messages: relative to the repository."""
    return path.relative_to(REPOSITORY).as_posix()


def layer(module: str) -> int | None:
    """The index of a module of `mtbi` in the order; None for modules of other packages."""
    top, _, rest = module.partition(".")
    return ORDER.index(rest.split(".")[0] or "__init__") if top == "mtbi" else None


def is_module(module: str) -> bool:
    """Whether a dotted name is a file or a folder of the repository."""
    path = REPOSITORY.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def module_name(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the module of every import in a file: lazy ones, those for types alone, and `import_module("...")`."""
    package = path.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "mtbi")  # it is imported anyway
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield node.lineno, inside if is_module(inside) else base
        elif isinstance(node, ast.Call) and (module := imported_by_call(node)):
            yield node.lineno, module


def imported_by_call(node: ast.Call) -> str:
    """The module of `import_module("...")`; empty for all other calls."""
    literal = node.args[0] if node.args and ast.unparse(node.func).endswith("import_module") else None
    return str(literal.value) if isinstance(literal, ast.Constant) else ""


def upward_imports(path: Path, source: ast.AST) -> list[str]:
    """The imports of a file that stand higher in the order than the file does."""
    own = layer(module_name(path))
    assert own is not None
    found = ((line, module, layer(module)) for line, module in sorted(set(imports(path, source))))
    return [
        f"{name(path)}:{line} imports {module}, but {ORDER[other]} stands above {ORDER[own]}"
        for line, module, other in found
        if other is not None and other > own
    ]


def test_the_order_names_every_part_of_the_package() -> None:
    parts = {path.stem for path in (REPOSITORY / "mtbi").iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))}
    assert parts == set(ORDER), "mtbi/ and the table ORDER of this test differ"


def test_no_folder_imports_upwards() -> None:
    found = [line for path in sources("mtbi") for line in upward_imports(path, tree(path))]
    assert not found, "move what is imported down, or name it by a string in mtbi/plugins.py:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import mtbi.cli",
        "from mtbi import train",
        "from mtbi import SpeechLLM",
        "from mtbi.use.api import SpeechLLM",
        "from ..engine import engine",
        "def late():\n    from mtbi.engine import engine",
        "if TYPE_CHECKING:\n    from mtbi.hf import modeling",
        "importlib.import_module('mtbi.benchmark.run')",
    ],
)
def test_an_upward_import_would_be_seen(line: str) -> None:
    assert len(upward_imports(REPOSITORY / "mtbi" / "model" / "adapter.py", ast.parse(line))) == 1


def test_the_launcher_knows_nothing_of_models_and_data() -> None:
    allowed = {"mtbi.errors", "mtbi.recipe", "mtbi.cli.arguments"}
    found = [
        f"{name(path)}:{line} imports {module}"
        for path in sources("launcher")
        for line, module in imports(path, tree(path))
        if module.startswith("mtbi") and not any(module.startswith(start) for start in allowed)
    ]
    assert not found


def test_no_file_is_too_long() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*MEASURED)}
    long = [f"{path}: {count} lines" for path, count in lengths.items() if count > LONGEST_FILE_LINES]
    assert not long, f"more than {LONGEST_FILE_LINES} lines; split by what the parts do:\n" + "\n".join(long)


def test_no_function_is_too_long() -> None:
    long = [
        f"{name(path)}:{node.lineno} {node.name}: {length} lines"
        for path in sources(*MEASURED)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION_LINES
        and (name(path), node.name) != STORY
    ]
    assert not long, f"more than {LONGEST_FUNCTION_LINES} lines; give its steps names:\n" + "\n".join(long)


def test_no_two_classes_have_one_name() -> None:
    homes = defaultdict(list)
    for path in sources("mtbi"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(f"{name(path)}:{node.lineno}")
    doubled = [f"{title}: {', '.join(places)}" for title, places in homes.items() if len(places) > 1]
    assert not doubled, "rename all but one:\n" + "\n".join(doubled)


def described(page: str) -> dict[str, str]:
    """The tree in a page: each path, with `/` at the end of a folder, and its line."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    (block,) = (
        block for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if block.startswith("mtbi/")
    )
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        indent, entry, description = re.fullmatch(r"( *)(\S+)(?: +(.*))?", line).groups(default="")  # type: ignore[union-attr]
        folders[len(indent) // 2 :] = [entry]
        entries["".join(folders)] = description
    return entries


def existing(*folders: str) -> set[str]:
    """Every file and folder below these folders, as `described` writes them."""
    paths = [path for folder in folders for path in (REPOSITORY / folder, *(REPOSITORY / folder).rglob("*"))]
    return {name(path) + "/" * path.is_dir() for path in paths if "__pycache__" not in path.parts}


def parents(path: str) -> Iterator[str]:
    """The folders above a path, the nearest last."""
    return (path[: slash.end()] for slash in re.finditer("/", path.rstrip("/")))


def undescribed(entries: dict[str, str], paths: set[str]) -> list[str]:
    """The paths without a line of their own.

    The line of a folder covers its `__init__.py`. It also covers everything below a folder that has no line inside it and
    no Python file.
    """
    parts = {above for path in paths if path.endswith(".py") for above in parents(path)}
    parts |= {above for entry in entries for above in parents(entry)}
    covered = {entry for entry in entries if entry.endswith("/")} - parts
    return sorted(
        path
        for path in paths - entries.keys()
        if not path.endswith("/__init__.py") and not any(above in covered for above in parents(path))
    )


def check_tree(page: str, paths: set[str]) -> None:
    """The tree of a page has a line for each of these paths, and none for what does not exist."""
    entries = described(page)
    assert not (lost := undescribed(entries, paths)), f"{page}: its tree lacks a line for\n" + "\n".join(lost)
    gone = [path for path in entries if not (REPOSITORY / path).exists() or (REPOSITORY / path).is_dir() != path.endswith("/")]
    assert not gone, f"{page}: its tree names what does not exist:\n" + "\n".join(gone)
    silent = [path for path, description in entries.items() if not description]
    assert not silent, f"{page}: its tree says nothing about\n" + "\n".join(silent)


def test_the_architecture_page_has_a_line_for_every_file() -> None:
    check_tree("docs/architecture.md", existing("mtbi", "launcher", "slurm", "ds_configs", "tools", "examples"))


def test_the_readme_has_a_line_for_every_folder() -> None:
    made = {line.strip("/") for line in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()}
    top = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and path.name[0] != "."} - made
    inside = {path for path in existing("mtbi") if path.rstrip("/").count("/") == 1}
    check_tree("README.md", {f"{folder}/" for folder in top if not folder.endswith(".egg-info")} | inside)


def test_the_tree_stands_in_the_order_of_imports() -> None:
    inside = [path for path in described("docs/architecture.md") if re.fullmatch(r"mtbi/[^/]+/?", path)]
    assert [re.split(r"[/.]", path)[1] for path in inside] == list(ORDER[:-1])


def test_both_trees_say_the_same() -> None:
    short, whole = described("README.md"), described("docs/architecture.md")
    assert {path: line for path, line in short.items() if path in whole and line != whole[path]} == {}


def has_code(path: Path) -> bool:
    """Whether a file defines a function or a class: a package's `__init__.py` that only gathers names does not."""
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree(path)))


def own_test(path: Path) -> Path:
    """Where the test of a module stands: `mtbi/llm/fp8.py` has `tests/llm/test_fp8.py`."""
    *folders, file = path.relative_to(REPOSITORY).parts
    return REPOSITORY.joinpath("tests", *(folders[1:] if folders[0] == "mtbi" else folders), f"test_{file}")


def test_every_module_has_a_test() -> None:
    modules = [path for path in sources("mtbi", "launcher") if has_code(path) and path.name != "__init__.py"]
    lost = [name(path) for path in modules if not own_test(path).is_file() and name(path) not in COVERED_BY]
    assert not lost, "no test file of its own name, and no line in COVERED_BY:\n" + "\n".join(
        f"{path}: {name(own_test(REPOSITORY / path))}" for path in lost
    )


def test_the_table_of_covered_modules_is_right() -> None:
    gone = [path for pair in COVERED_BY.items() for path in pair if not (REPOSITORY / path).is_file()]
    assert not gone, "COVERED_BY names files that do not exist"
    needless = [path for path in COVERED_BY if own_test(REPOSITORY / path).is_file()]
    assert not needless, "COVERED_BY names modules that have a test of their own"
