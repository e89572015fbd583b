"""Digests of a run's data, which do not depend on the shards' addresses.

A position in the data (epoch, window, step) depends on the shards, their order, the numbers of frames and the code of the
plan. A checkpoint stores these digests beside its position, and `mtbi.engine.inputs` compares them when a run goes on.
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

WHOLE_BYTES = 1 << 28  #: of a larger table, about this much is read, in blocks at equal distances
BLOCK_ROWS = 1 << 16


def of_shards(shards: Shards) -> dict[str, str]:
    """Digests of the shards' checksums, in their order, and of every column of the index.

    Copies of the same shards have the same digests. At most WHOLE_BYTES of each table are read, in some tenths of a second.
    """
    index = shards.index
    sums = [reader.raw_data.hashes["xxh64"] for folder in shards.folders for reader in folder.readers]
    digests = {
        "shards": of_json([sums, index.shard_sizes]),
        "tasks": of_json(index.tasks),
        "tokenizer": of_json([index.fingerprint, index.prefix_ids, index.end_id]),
        "prompt_first": of_json(index.prompt_first),
    }
    for table in TABLES:
        digests |= {f"{table}.{column}": digest for column, digest in of_table(getattr(index, table)).items()}
    return digests


def of_table(table: np.ndarray) -> dict[str, str]:
    """A digest of each column. Of a large table, blocks at equal distances are read; they depend on its length alone."""
    blocks = -(-len(table) // BLOCK_ROWS)
    step = -(-table.nbytes // WHOLE_BYTES) or 1
    hashes = {column: hashlib.sha256(str(len(table)).encode()) for column in table.dtype.names or ()}
    for block in sorted({*range(0, blocks, step), *range(max(0, blocks - 1), blocks)}):
        rows = table[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
        for column, sha256 in hashes.items():
            sha256.update(rows[column].tobytes())
    return {column: sha256.hexdigest()[:16] for column, sha256 in hashes.items()}


def of_geometry(geometry: FrameGeometry) -> str:
    """A digest of the rule by which a clip's length gives its number of LLM positions."""
    return of_json(asdict(geometry))


def of_step(step: Step) -> str:
    """A digest of a step's rows. The weights of tasks may change and are left out."""
    rows = [
        [[g.utterance, list(g.branches), g.text_words.hex(), g.tokens, g.samples, g.targets] for g in row.groups]
        for row in step.rows
    ]
    return of_json(rows)


def of_json(value: object) -> str:
    """The first 16 digits of the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
