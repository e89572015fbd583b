"""Writing shards: a manifest, its recordings and the answers about it become MDS shards with an index."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtbi import mds, object_store
from mtbi.answers.store import AnswerStore
from mtbi.corpus import recordings, rendering
from mtbi.corpus.manifest import Utterance
from mtbi.corpus.rendering import Rendering
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat
from mtbi.llm.surroundings import Surroundings
from mtbi.shards.index import INDEX_NAME, IndexWriter
from mtbi.shards.record import COLUMNS, pack, unpack


def write_shards(
    utterances: Iterable[Utterance],
    folder: Path,
    behaviours: AnswerStore,
    chat: ChatFormat,
    out: str,
    audio_kind: str = "flac",
    shard_bytes: int = 1 << 26,
    allow_other_teacher: bool = False,
    hears: str = rendering.HEARS,
) -> int:
    """Write every utterance that has answers to `out` (a folder or `s3://…`). Returns the number of utterances written.

    `folder` is the manifest's folder, and relative audio paths start there. `hears` is `behaviour.hears`. Raises UserError
    where the answers are another LLM's, an utterance lacks a field, there is nothing to write, or `out` holds shards already.
    """
    for note in behaviours.notes:
        if reason := identity.difference(note, chat, allow_other_teacher):
            raise UserError(
                f"{behaviours.folder}: answers of {reason} ({note['llm']}) than the recipe's ({chat.tokenizer.name_or_path}); "
                "run `mtbi behave` with this recipe."
            )
    writer = ShardWriter(utterances, folder, behaviours, chat, audio_kind, shard_bytes, rendering.heard(hears))
    return writer.write_remote(out) if object_store.is_remote(out) else writer.write_folder(out)


@dataclass
class ShardWriter:
    """What is written, and how."""

    utterances: Iterable[Utterance]
    folder: Path  #: relative audio paths start here
    behaviours: AnswerStore
    chat: ChatFormat
    audio_kind: str  #: audio format of the shards
    shard_bytes: int  #: largest size of a shard
    hears: Rendering  #: what the speech LLM gets

    def write_remote(self, out: str) -> int:
        """Write to object storage, the index last."""
        with tempfile.TemporaryDirectory(prefix="mtbi-shards-") as scratch:
            refuse_used(out, Path(scratch))
            local = Path(scratch) / "shards"
            count = self.write(local, label=Path(out).name)
            names = sorted(path.name for path in local.iterdir() if path.name != INDEX_NAME)
            object_store.upload(local, [*names, INDEX_NAME], out)
        return count

    def write_folder(self, out: str) -> int:
        """Write to a folder. It gets its name when it is complete, so a killed run leaves no half of it."""
        refuse_filled(out)
        partial = partial_folder(out)
        count = self.write(partial, label=Path(out).parent.name)
        finish(partial, out)
        return count

    def write(self, local: Path, label: str) -> int:
        """Shards and index in a new local folder. `label` stands beside the progress bar."""
        index, reads = IndexWriter(), rendering.read_by_llm(self.behaviours.reads)
        with mds.part("streaming:MDSWriter")(
            out=str(local), columns=COLUMNS, hashes=["xxh64"], size_limit=self.shard_bytes
        ) as writer:
            for utterance in tqdm(self.utterances, desc=f"{label}: shards", unit="utterance", disable=None):
                around = reads.around(utterance)
                if answers := self.behaviours.get(utterance.id, utterance.text.join(around)):
                    wave, read = self.read_audio(utterance), Surroundings.of(self.chat, *around)
                    heard = Surroundings.of(self.chat, *self.hears.around(utterance))
                    columns = pack(utterance, answers, wave, self.chat, self.audio_kind, heard, read)
                    writer.write(columns)
                    index.add(unpack(columns))
        if not index.rows["utterances"]:
            raise UserError(
                f"{self.behaviours.folder}: no answer is about an utterance of the manifest; run `mtbi behave` on this "
                "manifest."
            )
        note = self.behaviours.note
        facts = {
            **identity.facts_of(self.chat),
            "llm": note["llm"],
            "llm_size": note.get("llm_size", ""),
            "new_tokens": note.get("new_tokens", []),
            "prompt_first": note.get("prompt_first", False),
            "encoded": "",
            "feature_width": 0,
        }
        index.save(local, facts)
        return len(index.rows["utterances"])

    def read_audio(self, utterance: Utterance) -> np.ndarray:
        """The waveform `(samples,)` of an utterance; no samples where it is text alone.

        Raises UserError, with the file's path, for an unusable recording.
        """
        if not utterance.audio:
            return np.zeros(0, np.float32)
        try:
            return recordings.read(utterance, self.folder)
        except UserError as error:
            raise UserError(
                f"{Path(self.folder) / utterance.audio} (utterance {utterance.id}): {error}. "
                "Sort such files out with `mtbi data import jsonl`."
            ) from error


def refuse_used(out: str, scratch: Path) -> None:
    """Raises UserError where a remote address holds shards: caches would mix their copies with the new shards."""
    try:
        object_store.fetch(f"{out.rstrip('/')}/{INDEX_NAME}", scratch / INDEX_NAME, retries=2)
    except object_store.NotFoundError:
        return
    raise UserError(f"{out}: holds shards already; choose another address, or delete them there and in the caches.")


def refuse_filled(out: str) -> None:
    """Raises UserError where a local folder holds something."""
    if Path(out).exists() and any(Path(out).iterdir()):
        raise UserError(f"{out}: not empty; shards go into a new folder. Choose another one, or delete it.")


def partial_folder(out: str) -> Path:
    """The name under which a folder is written. What a killed run left there is deleted."""
    partial = Path(f"{out.rstrip('/')}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def finish(partial: Path, out: str) -> None:
    """Give a folder that is complete its own name."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    partial.replace(out)
