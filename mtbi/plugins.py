"""Parts that are found by name: those that other packages add by entry points (docs/plugins.md), and those of the demo.

Installed packages are searched only for a name that mtbi does not ship, and a package is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mtbi.errors import UserError

#: The groups of entry points.
TEXT_STYLES, TASK_LIBRARIES, ADAPTERS, ENCODERS, IMPORTERS, LOGGERS = (
    "mtbi.text_styles", "mtbi.task_libraries", "mtbi.adapters", "mtbi.encoders", "mtbi.importers", "mtbi.loggers",
)  # fmt: skip
ALIGNERS, MODEL_ALIGNERS = "aligners", "aligners by model_type"  #: shipped ones only

#: Shipped parts by kind and name, as "module:name". A part is imported when it is used, so its folder may stand above the code
#: that uses it, as `demo/` does.
SHIPPED: dict[str, dict[str, str]] = {
    ENCODERS: {"demo": "mtbi.demo.encoder:DemoFamily"},
    ALIGNERS: {"demo": "mtbi.demo.encoder:DemoAligner"},
    LOGGERS: {
        "jsonl": "mtbi.engine.loggers:JsonLines",
        "wandb": "mtbi.engine.loggers:WeightsAndBiases",
        "mlflow": "mtbi.engine.loggers:MLflow",
    },
    MODEL_ALIGNERS: {"whisper": "mtbi.model.word_times.whisper:WhisperAligner"},
    IMPORTERS: {
        "folder": "mtbi.corpus.importers:import_folder",
        "librispeech": "mtbi.corpus.importers:import_librispeech",
        "commonvoice": "mtbi.corpus.importers:import_commonvoice",
        "kaldi": "mtbi.corpus.kaldi:import_kaldi",
        "libritts": "mtbi.corpus.libri:import_libritts",
        "mls": "mtbi.corpus.libri:import_mls",
        "gigaspeech": "mtbi.corpus.gigaspeech:import_gigaspeech",
        "yodas": "mtbi.corpus.yodas:import_yodas",
        "stm": "mtbi.corpus.stm:import_stm",
        "tar": "mtbi.corpus.archives:import_tar",
        "shar": "mtbi.corpus.shar:import_shar",
        "parquet": "mtbi.corpus.parquet:import_parquet",
        "fsdd": "mtbi.demo.importer:import_fsdd",
        "jsonl": "mtbi.corpus.importers:import_jsonl",
    },
}


def import_part(address: str) -> Any:
    """The object at "module:name"."""
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)


def find(group: str, name: str, shipped: Mapping[str, Any], field: str) -> Any:
    """The shipped part of that name, else the installed one; `field` says in messages where the name stands.

    Raises UserError as `locate` and `load` do.
    """
    if name not in shipped:
        return load(locate(group, name, shipped, field), field)
    return import_part(shipped[name]) if isinstance(shipped[name], str) else shipped[name]


def locate(group: str, name: str, shipped: Iterable[str], field: str) -> EntryPoint:
    """The entry point of an installed part; its package is not imported.

    Raises UserError where no package has the name, with all names and the nearest one, and where several packages have it.
    """
    installed = entry_points(group=group)
    matches = [entry for entry in installed if entry.name == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        packages = ", ".join(map(package, matches))
        raise UserError(f"{field} {name!r} is in several packages: {packages}. Uninstall all but one.")
    names = sorted(installed.names)
    nearest = get_close_matches(name, [*shipped, *names], 1)
    sentences = [f"{field} {name!r} is unknown" + (f": did you mean {nearest[0]!r}?" if nearest else ".")]
    sentences += [f"Shipped: {', '.join(shipped)}."] if shipped else []
    sentences += [f"Installed (entry points of {group}): {', '.join(names) or 'nothing'}."]
    raise UserError(" ".join([*sentences, "Choose one of them, or install the package that adds it."]))


def load(entry: EntryPoint, field: str) -> Any:
    """The object that an entry point names. Raises UserError, with the package, where it cannot be imported."""
    try:
        return entry.load()
    except Exception as error:  # a foreign package's import may raise anything
        raise UserError(
            f"{field} {entry.name!r}: the package {package(entry)} cannot be imported: {error!r}. "
            "Install what it needs, or another version of it."
        ) from error


def package(entry: EntryPoint) -> str:
    """Name and version of the package that has an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module
