"""The importers of the corpora that were made from LibriVox after LibriSpeech: LibriTTS and Multilingual LibriSpeech."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mtbi.audio.sound_files import is_sound
from mtbi.corpus import paths
from mtbi.corpus.importers import Record, keyed_lines
from mtbi.corpus.manifest import Rejected, Utterance, decode_text
from mtbi.errors import UserError

NORMALISED, ORIGINAL = ".normalized.txt", ".original.txt"
#: Languages in the folder names of Multilingual LibriSpeech (`mls_german`, `mls_german_opus`).
MLS_LANGUAGES = {
    "english": "en", "german": "de", "dutch": "nl", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt",
    "polish": "pl",
}  # fmt: skip


def import_libritts(source: Path) -> Iterator[Record]:
    """LibriTTS or LibriTTS-R: `SPLIT/SPEAKER/CHAPTER/SPEAKER_CHAPTER_PARAGRAPH_SENTENCE.wav`, with `.normalized.txt` beside it.

    The transcript is the normalised text: with case and punctuation, and numbers in words. Speakers are named as in
    LibriSpeech. The layout is that of https://www.openslr.org/60 (arXiv 1904.02882).
    """
    files = paths.walk(source).files
    texts = {str(path)[: -len(NORMALISED)]: path for path in files if path.name.endswith(NORMALISED)}
    for path in filter(is_sound, files):
        name, transcript = path.stem, texts.pop(str(path.with_suffix("")), None)
        if transcript is None:
            yield Rejected(id=f"ltts-{name}", audio=str(path), reason=f"no transcript: {name}{NORMALISED} is not beside it")
            continue
        try:
            text = decode_text(paths.read_bytes(transcript))
        except (UserError, OSError) as error:
            yield Rejected(id=f"ltts-{name}", audio=str(path), reason=f"transcript {error}")
            continue
        yield Utterance(f"ltts-{name}", str(path), text, f"ls-{name.split('_')[0]}", language="en", split=split_of(path))
    for transcript in texts.values():
        yield Rejected(id=transcript.name, audio="", reason=f"no recording: {transcript.name} has none beside it")


def split_of(path: Path) -> str:
    """The folder above that is named like a split of LibriSpeech; empty where none is."""
    return next((part for part in path.parts[::-1] if part.startswith(("train-", "dev-", "test-"))), "")


def import_mls(source: Path) -> Iterator[Record]:
    """Multilingual LibriSpeech: `SPLIT/transcripts.txt` (`SPEAKER_BOOK_NUMBER<tab>TEXT`), `SPLIT/audio/SPEAKER/BOOK/ID.flac`.

    The audio may be `.flac` or `.opus`. The language is that of a folder name such as `mls_german`. The layout is that of
    https://www.openslr.org/94 (arXiv 2012.03411).
    """
    files = paths.walk(source).files
    recordings = {(path.parents[3], path.stem): path for path in reversed(files) if is_sound(path) and len(path.parents) > 3}
    for table in (path for path in files if path.name == "transcripts.txt"):
        words = (word for part in table.parts for word in part.lower().split("_") if part.lower().startswith("mls_"))
        language = next((MLS_LANGUAGES[word] for word in words if word in MLS_LANGUAGES), "")
        for line in keyed_lines(table):
            if not isinstance(line, tuple):
                yield line
                continue
            name, text = line
            speaker, book = (*name.split("_"), "", "")[:2]
            path = recordings.get((table.parent, name), table.parent / "audio" / speaker / book / f"{name}.flac")
            yield Utterance(f"mls-{name}", str(path), text, f"mls-{speaker}", language=language, split=table.parent.name)
