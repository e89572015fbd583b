"""Documented modules that moved: their old names import the new ones, with a DeprecationWarning, for one version."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old name: new name. An empty new name stands for a folder that no longer exists, so that the names in it can be imported.
MOVED = {
    "mtbi.api": "mtbi.use.api",
    "mtbi.chat": "mtbi.use.conversation",
    "mtbi.trained": "mtbi.use.open_run",
    "mtbi.data": "",
    "mtbi.data.align": "mtbi.corpus.align",
    "mtbi.data.audio": "mtbi.audio.codec",
    "mtbi.data.corpus": "mtbi.corpus.manifest",
    "mtbi.data.importers": "mtbi.corpus.importers",
    "mtbi.data.paths": "mtbi.corpus.paths",
    "mtbi.data.plan": "mtbi.batches.plan",
    "mtbi.data.shards": "mtbi.shards.read",
    "mtbi.data.waveforms": "mtbi.audio.waveforms",
    "mtbi.model.geometry": "mtbi.model.frame_counts",
    "mtbi.tasks": "",
    "mtbi.tasks.chat": "mtbi.llm.chat_format",
    "mtbi.tasks.registry": "mtbi.answers.task_library",
}

#: Documented names that left the module in which they were. Old module: {old name: "new module:new name"}.
RENAMED = {
    "mtbi.data.corpus": {"Limits": "mtbi.corpus.check:RecordingLimits"},
    "mtbi.data.paths": {"is_sound": "mtbi.audio.sound_files:is_sound", "locate": "mtbi.audio.sound_files:locate"},
}


class MovedModules(MetaPathFinder, Loader):
    """Imports the module of the new name for an old one."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=not MOVED[fullname]) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if not (new := MOVED[spec.name]):
            return None
        warnings.warn(
            f"{spec.name} moved to {new}; the next version no longer has the old name", DeprecationWarning, stacklevel=2
        )
        module = ModuleType(spec.name)
        module.__dict__.update(import_module(new).__dict__)
        for old_name, address in RENAMED.get(spec.name, {}).items():
            new_module, new_name = address.split(":")
            module.__dict__[old_name] = getattr(import_module(new_module), new_name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """`create_module` has filled the module already."""


def install() -> None:
    """Add the old names to what can be imported."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
