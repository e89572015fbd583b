from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mtbi import mds, object_store
from mtbi.errors import UserError


def test_a_part_is_the_packages_own() -> None:
    from streaming import MDSWriter

    assert mds.part("streaming:MDSWriter") is MDSWriter


def test_without_the_package_its_command_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "streaming"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(UserError, match="mosaicml-streaming is missing: pip install --no-deps mosaicml-streaming"):
        mds.part("streaming:MDSWriter")
    with pytest.raises(UserError, match="mosaicml-streaming is missing"):
        object_store.fetch("s3://bucket/file", tmp_path / "file")


class Missing:
    """Finds no package `streaming`, wherever it is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "streaming":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
