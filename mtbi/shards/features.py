"""Shards that hold a frozen encoder's output instead of the audio: `mtbi data encode`.

A frozen encoder computes the same features for an utterance in every epoch. Stored as float16 they take more disk and save
the encoder's share of every step. Several layers (`model.encoder.layers`) are stored side by side, each at the price of one, so
that the weights of their sum still train. They need whole utterances (`interleave.cut=slice`) and a frozen encoder.
"""

from __future__ import annotations

import shutil
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

from mtbi.corpus.manifest import ManifestSlice
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.shards.index import Index, save_rows
from mtbi.shards.output import ShardOutput
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance

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


def read_ahead(source: Shards, numbers: range, batch_size: int) -> Iterator[list[tuple[dict[str, Any], StoredUtterance]]]:
    """Records (`Shards.record`) by number, in batches. Threads decode the next batch while this one is in use."""
    parts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    with ThreadPoolExecutor() as pool:
        following = pool.map(source.record, parts[0] if parts else ())
        for part in [*parts[1:], range(0)][: len(parts)]:
            batch, following = list(following), pool.map(source.record, part)
            yield batch


def check_room(
    index: Index,
    out: str,
    encoder_frames: Callable[[np.ndarray], np.ndarray],
    width: int,
    part: ManifestSlice | None = None,
) -> int:
    """About how many bytes the features of an index, or of a part of it, take. Raises UserError where the disk of the new
    folder `out` has less free. An object store is not asked.

    `encoder_frames` gives the frames of clips from their lengths in samples, `width` is that of a frame.
    """
    samples = index.utterances["samples"].astype(np.int64)
    needed = int(encoder_frames(samples[samples > 0]).sum()) * width * np.dtype(np.float16).itemsize
    needed //= part.of if part else 1
    if "://" in out:
        return needed
    free = shutil.disk_usage(next(parent for parent in Path(out).absolute().parents if parent.exists())).free
    if needed > free:
        raise UserError(
            f"{out}: the encoder's output takes {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free. Name fewer "
            "layers (model.encoder.layers), choose another disk, or train on the shards with audio."
        )
    return needed


@torch.no_grad()
def write(
    source: Shards,
    encoder: Encoder,
    name: str,
    out: str,
    batch_size: int = CPU_BATCH,
    shard_bytes: int = 1 << 26,
    part: ManifestSlice | None = None,
    made_from: str = "",
) -> int:
    """Encode every utterance of `source` into new shards at `out`, a folder or `s3://…`; returns how many are written.

    A `part` is a stretch of the source's shards, so that no two parts read the same shard. `made_from` is a digest of the
    source (`mtbi.shards.output`). Raises UserError where `source` holds features already, or `out` holds something else.
    """
    if source.index.encoded:
        raise UserError(f"these shards hold features already ({source.index.encoded})")
    output = ShardOutput(out, part, f"{made_from} {name}")
    if (count := output.finished()) is None:
        ends = np.cumsum([0, *source.index.shard_sizes])
        first, stop = (int(ends[shard]) for shard in (part.bounds(len(ends) - 1) if part else (0, -1)))
        with output.folder() as local:
            width = write_features(source, range(first, stop), encoder, output, local, batch_size, shard_bytes)
            facts = {**source.index.facts(), "encoded": name, "feature_width": width, **output.facts}
            save_rows(source.index, first, stop, local, facts)
        count = stop - first
    output.join()
    return count


def write_features(
    source: Shards, numbers: range, encoder: Encoder, output: ShardOutput, local: Path, batch_size: int, shard_bytes: int
) -> int:
    """Encode utterances of `source` into shards in the folder `local`. Returns the width of their features."""
    width = source.index.feature_width
    with output.shards(local, shard_bytes) as write_record:
        batches = read_ahead(source, numbers, batch_size)
        for records in tqdm(batches, total=-(-len(numbers) // batch_size), desc="features", unit="batch", disable=None):
            # Text alone has no samples: silence is encoded in their place, and not stored.
            waves = [torch.from_numpy(u.waveform) if len(u.waveform) else torch.zeros(SILENT_SAMPLES) for _, u in records]
            hidden, lengths = encoder(pad_sequence(waves, True), torch.tensor([len(wave) for wave in waves]))
            for (columns, utterance), frames, length in zip(records, hidden.float().cpu(), lengths.tolist(), strict=True):
                if not len(utterance.waveform):
                    write_record(columns)
                    continue
                features = np.ascontiguousarray(frames[:length].numpy().astype(np.float16))
                tensors = load_tensors(columns["tensors"]) | {"features": features}
                write_record({**columns, "audio": b"", "tensors": save_tensors(tensors)})
                width = features.shape[1]
    return width
