"""The importer of Hugging Face's Parquet files. The recordings stay in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtbi.audio import members
from mtbi.corpus import manifest, paths
from mtbi.corpus.importers import Record
from mtbi.corpus.manifest import ALIASES, Rejected
from mtbi.errors import UserError

#: Columns of transcripts, where one is not chosen.
TEXTS = ("text", *(key for key, name in ALIASES.items() if name == "text"))
#: Columns that are taken over, by the field of the utterance. Times are not: they are often those of an earlier recording.
OTHERS = {"id": "id", "speaker": "speaker", "speaker_id": "speaker", "client_id": "speaker", "language": "language"}
OTHERS |= {"lang": "language", "locale": "language", "gender": "gender"}
ROWS = 1024  #: read at once, without their recordings


def import_parquet(source: Path, text_column: str = "", audio_column: str = "") -> Iterator[Record]:
    """Parquet files of Hugging Face at any depth: a column of recordings (`audio` with `bytes` and `path`) and one of
    transcripts, which `--text-column` chooses.

    The split is the start of the file's name, as in `train-00000-of-00010.parquet`. The columns `id`, `speaker_id`, `language`,
    `gender` and the like are taken over. The layout is that of https://huggingface.co/docs/datasets/audio_dataset.
    """
    files = [source] if source.is_file() else [path for path in paths.walk(source).files if path.suffix == ".parquet"]
    for path in files:
        name = path.stem if path == source else str(path.relative_to(source).with_suffix(""))
        try:
            paths.refuse_pipe(path)
            yield from read_file(members.pyarrow_parquet().ParquetFile(path), path, name, text_column, audio_column)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            yield Rejected(id=name, audio=str(path), reason=f"not readable as Parquet: {error}")


def read_file(file: Any, path: Path, name: str, text_column: str, audio_column: str) -> Iterator[Record]:
    """The records of one file; `name` is its path below the source without the ending.

    Raises UserError, with all columns, where the columns of recordings and of transcripts are not clear.
    """
    schema = file.schema_arrow
    columns = {field.name: str(field.type) for field in schema}
    listed = ", ".join(f"{column} ({kind.partition('<')[0]})" for column, kind in columns.items())
    sounds = [column for column, kind in columns.items() if kind.startswith("struct") and "bytes: " in kind]
    sounds = sounds or [column for column, kind in columns.items() if kind in ("binary", "large_binary")]
    audio = chosen(audio_column, sounds, "--audio-column", "recordings", path, listed, columns)
    text = chosen(text_column, [key for key in TEXTS if key in columns], "--text-column", "transcripts", path, listed, columns)
    others = {column: OTHERS[column] for column in columns if column in OTHERS and column not in (text, audio)}
    split = path.stem.partition("-")[0] if "-" in path.stem else ""
    row = 0
    for batch in file.iter_batches(ROWS, columns=[text, *others]):
        for values in batch.to_pylist():
            record = {others[column]: value for column, value in values.items() if column in others and value is not None}
            record["id"] = str(record.get("id") or f"{name}-{row:06d}")
            record |= {"audio": f"{path}:{audio}:{row}", "text": values[text], "split": split}
            try:
                yield manifest.parse(record)
            except UserError as error:
                yield Rejected(id=record["id"], audio=record["audio"], reason=str(error))
            row += 1


def chosen(given: str, candidates: list[str], option: str, what: str, path: Path, listed: str, columns: dict[str, str]) -> str:
    """The column that an option gives, or the only candidate. Raises UserError, with all columns, where there is none."""
    if given in columns:
        return given
    if given:
        raise UserError(f"{option} {given}: {path.name} has no such column; there are: {listed}")
    if len(candidates) == 1:
        return candidates[0]
    several = "several columns may hold" if candidates else "no column is known to hold"
    raise UserError(f"{path.name}: {several} the {what}; choose one with {option}. There are: {listed}")
