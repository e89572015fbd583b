"""Writing shards: a manifest, its recordings and the answers about it become MDS shards with an index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtbi.answers.store import AnswerStore
from mtbi.audio import sound_files
from mtbi.corpus import recordings, rendering
from mtbi.corpus.manifest import ManifestSlice, Utterance
from mtbi.corpus.rendering import Rendering
from mtbi.errors import UnavailableError, UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat
from mtbi.llm.surroundings import Surroundings
from mtbi.shards.index import IndexWriter
from mtbi.shards.output import ShardOutput
from mtbi.shards.record import pack, unpack


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
    part: ManifestSlice | None = None,
    made_from: str = "",
) -> int:
    """Write every utterance that has answers to `out` (a folder or `s3://…`). Returns the number of utterances written.

    `folder` is the manifest's folder, and relative audio paths start there. `hears` is `behaviour.hears`. With `part` the
    utterances are one part of those that `out` will hold, and `made_from` is a digest of the whole manifest
    (`mtbi.shards.output`). A part that is complete is not written again. Raises UserError where the answers are another
    LLM's, an utterance lacks a field, there is nothing to write, or `out` holds other shards already.
    """
    for note in behaviours.notes:
        if reason := identity.difference(note, chat, allow_other_teacher):
            raise UserError(
                f"{behaviours.folder}: answers of {reason} ({note['llm']}) than the recipe's ({chat.tokenizer.name_or_path}); "
                "run `mtbi behave` with this recipe."
            )
    writer = ShardWriter(utterances, folder, behaviours, chat, audio_kind, shard_bytes, rendering.heard(hears))
    settings = json.dumps([made_from, audio_kind, shard_bytes, hears, identity.facts_of(chat), behaviours.note], sort_keys=True)
    return writer.write_to(ShardOutput(out, part, hashlib.sha256(settings.encode()).hexdigest()))


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

    def write_to(self, output: ShardOutput) -> int:
        """Write to a folder or to object storage. Returns the number of utterances written."""
        if (count := output.finished()) is None:
            with output.folder() as local:
                count = self.write(local, output)
        output.join()
        return count

    def write(self, local: Path, output: ShardOutput) -> int:
        """Shards and index in a new local folder."""
        index, reads = IndexWriter(), rendering.read_by_llm(self.behaviours.reads)
        label = Path(output.out).name if output.remote else Path(output.out).parent.name
        with output.shards(local, self.shard_bytes) as write:
            for utterance in tqdm(self.utterances, desc=f"{label}: shards", unit="utterance", disable=None):
                around = reads.around(utterance)
                if answers := self.behaviours.get(utterance.id, utterance.text.join(around)):
                    wave, read = self.read_audio(utterance), Surroundings.of(self.chat, *around)
                    heard = Surroundings.of(self.chat, *self.hears.around(utterance))
                    columns = pack(utterance, answers, wave, self.chat, self.audio_kind, heard, read)
                    write(columns)
                    index.add(unpack(columns))
        if not index.rows["utterances"] and not output.part:
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
            **output.facts,
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
        except UnavailableError:
            raise
        except UserError as error:
            raise UserError(
                f"{sound_files.below(self.folder, utterance.audio)} (utterance {utterance.id}): {error}. "
                "Sort such files out with `mtbi data import jsonl`."
            ) from error
