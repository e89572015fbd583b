"""What the data of a run are, in some short texts that do not depend on where they lie.

A place in the data (epoch, window, step) means something only together with the shards, their order, the encoder's and
adapter's geometry and the code that plans. A checkpoint keeps these texts beside its place; see `mtbi/engine/inputs.py`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from mtbi.batches.plan import Step
from mtbi.model.frame_counts import FrameGeometry
from mtbi.shards.index import TABLES
from mtbi.shards.read import Shards

WHOLE_BYTES = 1 << 28  #: a table of at most so many bytes is read whole, of a larger one about as much in equal distances
BLOCK_ROWS = 1 << 16


def of_shards(shards: Shards) -> dict[str, str]:
    """Digests of what shards hold, in their order: each shard's own checksum, and every column of the index.

    Equal bytes in other places give the same. Reads at most WHOLE_BYTES of each table: some tenths of a second.
    """
    index = shards.index
    sums = [reader.raw_data.hashes["xxh64"] for folder in shards.folders for reader in folder.readers]
    found = {
        "shards": of_json([sums, index.shard_sizes]),
        "tasks": of_json(index.tasks),
        "tokenizer": of_json([index.fingerprint, index.prefix_ids, index.end_id]),
        "prompt_first": of_json(index.prompt_first),
    }
    for table in TABLES:
        found |= {f"{table}.{column}": text for column, text in of_table(getattr(index, table)).items()}
    return found


def of_table(table: np.ndarray) -> dict[str, str]:
    """A digest of each column. Large tables are sampled in blocks whose places depend on their length alone."""
    blocks = -(-len(table) // BLOCK_ROWS)
    step = -(-table.nbytes // WHOLE_BYTES) or 1
    sums = {column: hashlib.sha256(str(len(table)).encode()) for column in table.dtype.names or ()}
    for block in sorted({*range(0, blocks, step), *range(max(0, blocks - 1), blocks)}):
        rows = table[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
        for column, total in sums.items():
            total.update(rows[column].tobytes())
    return {column: total.hexdigest()[:16] for column, total in sums.items()}


def of_geometry(geometry: FrameGeometry) -> str:
    """How many LLM positions speech takes."""
    return of_json(asdict(geometry))


def of_step(step: Step) -> str:
    """What a step of the plan holds; the weights of tasks may change and do not count."""
    rows = [
        [[g.utterance, list(g.branches), g.text_words.hex(), g.tokens, g.samples, g.targets] for g in row.groups]
        for row in step.rows
    ]
    return of_json(rows)


def of_json(value: object) -> str:
    """16 digits of the SHA-256 of a value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
