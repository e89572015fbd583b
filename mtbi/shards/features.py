"""Shards that hold a frozen encoder's output instead of the audio: `mtbi data encode`.

A frozen encoder computes the same features for an utterance in every epoch. Stored as float16 they take more disk and save
the encoder's share of every step. They need whole utterances (`interleave.cut=slice`) and a frozen encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mtbi import mds
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.shards.index import INDEX_NAME, TABLES, Index, write_index
from mtbi.shards.read import Shards
from mtbi.shards.record import COLUMNS, StoredUtterance
from mtbi.shards.write import finish, partial_folder, refuse_filled

CPU_BATCH, GPU_BATCH = 16, 64  #: utterances that are encoded together
SILENT_SAMPLES = 1600  # encoded for an utterance without sound, and not stored

Encoder = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def check(index: Index, recipe: Recipe, output_name: str, encoder_trains: bool) -> None:
    """Raises UserError where stored features are not those of the recipe's encoder, or the recipe needs audio.

    `output_name` names the output of the recipe's encoder; `encoder_trains` says whether any of its own weights train.
    """
    if not index.encoded:
        return
    if index.encoded != output_name:
        raise UserError(f"data.shards: hold the output of {index.encoded}, the recipe's encoder is {output_name}")
    if encoder_trains or recipe.model.encoder_lora.rank:
        raise UserError("data.shards: hold an encoder's output, so the encoder cannot be trained; use the shards with audio")
    if recipe.interleave.share and recipe.interleave.cut != "slice":
        raise UserError("data.shards: hold an encoder's output, so spans can only be sliced: set interleave.cut=slice")


def read_ahead(source: Shards, batch_size: int) -> Iterator[list[tuple[dict[str, Any], StoredUtterance]]]:
    """All records (`Shards.record`) in batches. Threads decode the next batch while this one is in use."""
    parts = [range(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    with ThreadPoolExecutor() as pool:
        following = pool.map(source.record, parts[0]) if parts else iter(())
        for part in [*parts[1:], range(0)]:
            batch, following = list(following), pool.map(source.record, part)
            yield batch


@torch.no_grad()
def write(
    source: Shards, encoder: Encoder, name: str, out: str, batch_size: int = CPU_BATCH, shard_bytes: int = 1 << 26
) -> int:
    """Encode every utterance of `source` into new shards in the local folder `out`; returns how many there are.

    Raises UserError where `source` holds features already, or `out` is not empty.
    """
    if source.index.encoded:
        raise UserError(f"these shards hold features already ({source.index.encoded})")
    refuse_filled(out)
    partial = partial_folder(out)
    width = 0
    with mds.part("streaming:MDSWriter")(out=str(partial), columns=COLUMNS, hashes=["xxh64"], size_limit=shard_bytes) as writer:
        batches = read_ahead(source, batch_size)
        for records in tqdm(batches, total=-(-len(source) // batch_size), desc="features", unit="batch", disable=None):
            # Text alone has no samples: silence is encoded in their place, and not stored.
            waves = [torch.from_numpy(u.waveform) if len(u.waveform) else torch.zeros(SILENT_SAMPLES) for _, u in records]
            hidden, lengths = encoder(pad_sequence(waves, True), torch.tensor([len(wave) for wave in waves]))
            for (columns, utterance), frames, length in zip(records, hidden.float().cpu(), lengths.tolist(), strict=True):
                if not len(utterance.waveform):
                    writer.write(columns)
                    continue
                features = np.ascontiguousarray(frames[:length].numpy().astype(np.float16))
                tensors = load_tensors(columns["tensors"]) | {"features": features}
                writer.write({**columns, "audio": b"", "tensors": save_tensors(tensors)})
                width = features.shape[1]
    for table in TABLES:
        np.save(partial / f"{table}.npy", getattr(source.index, table), allow_pickle=False)
    write_index(partial, {**source.index.facts(), "encoded": name, "feature_width": width})
    finish(partial, out)
    assert (Path(out) / INDEX_NAME).exists()
    return len(source)
