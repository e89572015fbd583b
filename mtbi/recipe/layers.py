"""Reading and writing recipes: a file with its bases, then `key=value` arguments, and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from mtbi import files
from mtbi.errors import UserError
from mtbi.recipe.convert import build, nearest
from mtbi.recipe.renamed import RENAMED, with_new_names
from mtbi.recipe.schema import Recipe

SHIPPED = Path(__file__).parent / "shipped"
RUN_DIR = "{run_dir}"
Layer = tuple[str, dict[str, Any]]  #: the origin of values, and the values as nested dictionaries


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with `key=value` overrides applied; `{run_dir}` in the fields of `data` stands for the run's folder.

    Raises UserError for an unknown recipe or key (with the nearest one), a wrong type or value, and unreadable YAML.
    """
    return resolve(read_layers(name_or_path, overrides))


def load_saved(path: str | Path) -> Recipe:
    """The recipe that `save` wrote. Unlike `load`, it logs nothing about keys that have been renamed since."""
    return resolve(read_file(Path(path), [], note_renamed=False))


def save(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe as YAML, in one piece."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, to_yaml(recipe))


def to_yaml(recipe: Recipe) -> str:
    """The whole resolved recipe, as `load` reads it back."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True, width=120)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain dictionaries, lists and values."""
    return asdict(recipe)


def value_of(recipe: Recipe, path: str) -> Any:
    """The value at a path such as `train.steps`, as plain dictionaries, lists and values. Old names of keys work too."""
    value: Any = recipe
    for key in RENAMED.get(path, path).split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return plain(value)


def plain(value: Any) -> Any:
    """The value with every section in it as a dictionary."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


# --- layers of values --------------------------------------------------------------------------------------------------


def resolve(layers: list[Layer]) -> Recipe:
    """The recipe that layers of values in rising order make."""
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = merge(values, layer)
    recipe: Recipe = build(Recipe, values)
    check_together(recipe)
    data = recipe.data
    data.shards = [address.replace(RUN_DIR, recipe.run_dir) for address in data.shards]
    data.eval_shards = [address.replace(RUN_DIR, recipe.run_dir) for address in data.eval_shards]
    data.weights = {address.replace(RUN_DIR, recipe.run_dir): weight for address, weight in data.weights.items()}
    data.cache_dir = data.cache_dir.replace(RUN_DIR, recipe.run_dir)
    return recipe


def check_together(recipe: Recipe) -> None:
    """Raises UserError where values contradict each other."""
    interleave = recipe.interleave
    for name in ("span_words", "text_share"):
        least, most = getattr(interleave, f"{name}_min"), getattr(interleave, f"{name}_max")
        if least > most:
            raise UserError(f"interleave.{name}_min ({least}) is more than interleave.{name}_max ({most})")
    if unknown := sorted(set(recipe.data.weights) - set(recipe.data.shards)):
        raise UserError(
            f"data.weights: {unknown[0]} is not an address of data.shards ({', '.join(recipe.data.shards) or 'empty'})"
        )
    if recipe.loss.ce == recipe.loss.kl == 0:
        raise UserError("loss.ce and loss.kl are both 0, so nothing would be learnt: give one of them a weight")
    if recipe.model.llm_trainable != "none":
        check_llm_training(recipe)
    if recipe.train.alignment_steps >= recipe.train.steps:
        raise UserError(
            f"train.alignment_steps ({recipe.train.alignment_steps}) leaves none of train.steps ({recipe.train.steps}) for "
            "imitation: set the first lower or the second higher"
        )


def check_llm_training(recipe: Recipe) -> None:
    """Raises UserError where the LLM's own weights train and other values do not go with it."""
    if not recipe.train.llm_learning_rate:
        raise UserError(
            f"model.llm_trainable is {recipe.model.llm_trainable!r}, but train.llm_learning_rate is 0: give the LLM's own "
            "weights a learning rate, such as 2e-5. The adapter's (train.learning_rate) would destroy them"
        )
    if recipe.model.llm_fp8 and recipe.model.llm_trainable == "all":
        raise UserError(
            "model.llm_fp8 rounds the layers that are frozen, and with model.llm_trainable=all none is: set "
            "model.llm_fp8=false, or train fewer layers"
        )


def read_layers(name_or_path: str | Path, overrides: Sequence[str]) -> list[Layer]:
    """All values with their origins, in rising order."""
    arguments = [(f"argument {override}", read_override(override)) for override in overrides]
    return [*read_file(find_recipe(name_or_path), []), *arguments]


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a shipped one."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"{path}: no such recipe file")
        return path
    shipped = {file.stem: file for file in SHIPPED.glob("*.yaml")}
    if str(name_or_path) not in shipped:
        hint = nearest(str(name_or_path), sorted(shipped))
        raise UserError(f"no recipe is called {str(name_or_path)!r}: {hint} Or give the path of a .yaml file.")
    return shipped[str(name_or_path)]


def read_file(path: Path, children: list[Path], note_renamed: bool = True) -> list[Layer]:
    """The layers of a recipe file: those of its `base` first, its own last. `children` are the files that led to this one."""
    if path.resolve() in children:
        raise UserError(f"{path}: `base` goes round in a circle: {' → '.join(map(str, [*children, path.resolve()]))}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of `key: value` lines, this is a {type(values).__name__}")
    base = values.pop("base", None)
    try:
        values = with_new_names(values, note_renamed)
        build(Recipe, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    own = (path.name if path.parent == SHIPPED else str(path), values)
    if base is None:
        return [own]
    beside = path.parent / str(base)
    try:
        base_path = beside if beside.is_file() else find_recipe(str(base))
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    return [*read_file(base_path, [*children, path.resolve()], note_renamed), own]


def read_override(override: str) -> dict[str, Any]:
    """One `a.b.c=value` as nested dictionaries; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: an override has the form key=value, for example train.steps=100")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not readable as YAML: {' '.join(str(error).split())}") from error
    *parents, last = key.split(".")
    values: dict[str, Any] = {last: value}
    for parent in reversed(parents):
        values = {parent: values}
    values = with_new_names(values, note=True)
    build(Recipe, values)  # unknown keys and wrong values are reported for this override alone
    return values


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, section by section; where both have a value, the one of `above`."""
    merged = dict(below)
    for key, value in above.items():
        deep = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = merge(below[key], value) if deep else value
    return merged


# --- where each value comes from ---------------------------------------------------------------------------------------


def annotated(name_or_path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML, with the origin of its value as a comment on each line."""
    layers = read_layers(name_or_path, overrides)
    origins = {path: origin for origin, layer in layers for path in leaf_paths(layer)}
    lines = yaml_lines(to_dict(resolve(layers)), origins, "")
    width = min(60, max(len(text) for text, _ in lines))
    return "\n".join(f"{text:{width}s}  # {origin}" if origin else text for text, origin in lines) + "\n"


def yaml_lines(values: dict[str, Any], origins: dict[str, str], path: str) -> list[tuple[str, str]]:
    """(text, origin) of each line; the line of a section's name has no origin."""
    lines = []
    indent = "  " * path.count(".")
    for key, value in values.items():
        key_path = f"{path}{key}"
        if isinstance(value, dict) and value:
            lines += [(f"{indent}{key}:", ""), *yaml_lines(value, origins, f"{key_path}.")]
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines.append((f"{indent}{key}: {text}", origins.get(key_path, "default")))
    return lines


def leaf_paths(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all values that are no sections."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaf_paths(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"
