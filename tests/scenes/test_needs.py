from __future__ import annotations

import subprocess
import sys

import pytest

from mtbi.scenes.needs import need

SCRIPT = """
import sys
sys.modules["kaldialign"] = sys.modules["scipy"] = None  # as if they were not installed
from mtbi.errors import UserError
from mtbi.scenes.needs import need
for address in ("scipy.optimize:linear_sum_assignment", "kaldialign:align"):
    try:
        need(address)
    except UserError as error:
        print(error)
"""


def test_a_missing_package_is_named_with_its_extra() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} is missing: pip install 'mtbi[scenes]'" for name in ("scipy", "kaldialign")]


def test_other_missing_modules_are_defects() -> None:
    with pytest.raises(ModuleNotFoundError):
        need("mtbi.no_such_module:part")
