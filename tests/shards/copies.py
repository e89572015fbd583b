"""Copies of shards whose index differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mtbi.shards.index import INDEX_NAME


def copy_of(shard_folder: Path, folder: Path, **facts: object) -> str:
    """Copy shards, with other facts in the index. A fact that is None is removed."""
    shutil.copytree(shard_folder, folder)
    index = json.loads((folder / INDEX_NAME).read_text()) | {"sums": None} | facts
    (folder / INDEX_NAME).write_text(json.dumps({key: value for key, value in index.items() if value is not None}))
    return str(folder)
