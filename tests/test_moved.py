"""Documented modules that moved still import by their old names."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mtbi.moved import MOVED

API = Path(__file__).parents[1] / "docs" / "api.md"


@pytest.mark.parametrize(("old", "new"), [pair for pair in MOVED.items() if pair[1]])
def test_an_old_name_imports_what_its_new_name_does(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=rf"^{re.escape(old)} moved to {re.escape(new)};"):
        former = import_module(old)
    current = import_module(new)
    public = [name for name in vars(current) if not name.startswith("__")]
    assert public
    assert all(getattr(former, name) is getattr(current, name) for name in public)


def test_an_old_name_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("mtbi.data.nothing")


def test_every_documented_name_imports() -> None:
    documented = re.findall(r"^::: ([\w.]+)\.(\w+)$", API.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(documented) > 20
    assert not [f"{module}.{name}" for module, name in documented if not hasattr(import_module(module), name)]
