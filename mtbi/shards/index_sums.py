"""Checksums of a shard index. Without them, a damaged table would give another plan of the same shards without an error.

`mtbi_index.json` keeps them under `sums`: one for each table, and one for all else in the file. Shards of earlier versions
have none, and are read without a check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEY = "sums"
FACTS = "facts"  #: the entry for the JSON file itself


def sums_of(folder: Path, tables: Iterable[str], record: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each table in `folder`, and of the rest of the index. Raises OSError."""
    sums = {}
    for name in tables:
        with (folder / f"{name}.npy").open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    rest = {key: value for key, value in record.items() if key != KEY}
    return sums | {FACTS: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def damaged(folder: Path, tables: Iterable[str], record: dict[str, Any]) -> list[str]:
    """The tables, and `facts` for the JSON file, that differ from what was written. Raises OSError."""
    if KEY not in record:
        return []
    kept = record[KEY] if isinstance(record[KEY], dict) else {}
    return [name for name, value in sums_of(folder, tables, record).items() if kept.get(name) != value]
