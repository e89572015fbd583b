"""Parts of the packages of the extra `scenes`, imported when a score needs them."""

from __future__ import annotations

from typing import Any

from mtbi import plugins
from mtbi.errors import UserError

PACKAGES = ("meeteval", "kaldialign", "scipy")


def need(address: str) -> Any:
    """The object at "module:name" of meeteval or scipy. Raises UserError where the package is not installed."""
    try:
        return plugins.import_part(address)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in PACKAGES:
            raise
        raise UserError(f"{package} is missing: pip install 'mtbi[scenes]'") from error
