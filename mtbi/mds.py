"""mosaicml-streaming, imported when a part of it is used.

Its metadata forbid transformers 5 and numpy 2.2, which its code accepts. So it is installed by a command of its own, without
its dependencies, which are dependencies of mtbi (docs/dependencies.md). This module names that command where it was left out.
"""

from __future__ import annotations

from typing import Any

from mtbi import plugins
from mtbi.errors import UserError

INSTALL = "pip install --no-deps mosaicml-streaming"


def part(address: str) -> Any:
    """The object at "module:name" of mosaicml-streaming. Raises UserError where the package is not installed."""
    try:
        return plugins.import_part(address)
    except ModuleNotFoundError as error:
        if error.name != "streaming":
            raise
        raise UserError(f"mosaicml-streaming is missing: {INSTALL}") from error
