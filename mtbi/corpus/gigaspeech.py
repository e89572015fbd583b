"""The importer of GigaSpeech, and of corpora with the same JSON file, such as WenetSpeech."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtbi.corpus import paths, records
from mtbi.corpus.importers import Record
from mtbi.corpus.manifest import Rejected, Utterance, decode_text
from mtbi.errors import UserError

#: Tags that stand for punctuation marks, and the marks.
MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
#: Tags of segments in which nobody speaks. GigaSpeech's authors advise to leave them out.
NO_SPEECH = re.compile(r"<(?:SIL|MUSIC|NOISE|OTHER)>")
#: Subsets, the smallest first: each training subset holds those before it.
SUBSETS = ("dev", "test", "test_net", "test_meeting", "xs", "s", "m", "l", "xl")


def import_gigaspeech(source: Path) -> Iterator[Record]:
    """One JSON file with `audios`, each with a `path` and `segments` (`sid`, `begin_time`, `end_time`, `text_tn` or `text`).

    Paths start from the file's folder. Tags of punctuation become marks (`HELLO <COMMA> YOU` is `HELLO, YOU`), and segments
    with <SIL>, <MUSIC>, <NOISE> or <OTHER> are left out. The split is the smallest subset (`xs` to `xl`, `dev`, `test`), so
    `--split xs --split s` is the subset S. The layout is that of https://github.com/SpeechColab/GigaSpeech (arXiv 2106.06909).
    The whole file is read into memory.
    """
    files = [source] if source.is_file() else [path for path in paths.walk(source).files if path.suffix.lower() == ".json"]
    for path in files:
        try:
            corpus = json.loads(decode_text(paths.read_bytes(path)))
        except (OSError, ValueError, RecursionError, UserError) as error:
            yield Rejected(id=path.name, audio="", reason=f"not JSON: {error}")
            continue
        if isinstance(corpus, dict) and isinstance(corpus.get("audios"), list):
            language = str(corpus.get("language") or "").lower()
            for number, audio in enumerate(corpus["audios"]):
                yield from read_audio(audio, f"{path.name}:audios[{number}]", path.parent, language)


def read_audio(audio: Any, place: str, folder: Path, language: str) -> Iterator[Record]:
    """The segments of one recording. `place` says in reasons where it stands."""
    segments = audio.get("segments") if isinstance(audio, dict) else None
    if not isinstance(segments, list) or not isinstance(audio.get("path"), str):
        yield Rejected(id=place, audio="", reason="bad record: an audio needs a `path` and a list of `segments`")
        return
    for number, segment in enumerate(segments):
        try:
            yield read_segment(segment, str(folder / audio["path"]), language)
        except (UserError, TypeError, KeyError, AttributeError, ValueError) as error:
            reason = str(error) if isinstance(error, UserError) else f"bad record: a segment is not as expected ({error!r})"
            name = str(segment.get("sid")) if isinstance(segment, dict) else f"{place}.segments[{number}]"
            yield Rejected(id=name, audio=str(folder / audio["path"]), reason=reason)


def read_segment(segment: Mapping[str, Any], audio: str, language: str) -> Utterance:
    """One segment. Raises UserError where nobody speaks in it or its times are wrong, and KeyError where a key is missing."""
    text = segment["text_tn"] if "text_tn" in segment else segment["text"]
    if tag := NO_SPEECH.search(text):
        raise UserError(f"no speech: the segment is marked with {tag[0]}")
    times = records.of_segment({"begin_time": segment["begin_time"], "end_time": segment["end_time"]})
    speaker = str(segment.get("speaker") or "")
    subsets = [str(subset).strip("{}").lower() for subset in segment.get("subsets") or []]
    return Utterance(
        str(segment["sid"]),
        audio,
        with_marks(text),
        "" if speaker == "N/A" else speaker,
        times["duration_s"],
        language,
        split=next((subset for subset in SUBSETS if subset in subsets), subsets[0] if subsets else ""),
        start_s=times["start_s"],
    )


def with_marks(text: str) -> str:
    """The transcript with punctuation marks in place of their tags."""
    for tag, mark in MARKS.items():
        text = re.sub(rf"\s*{tag}", mark, text)
    return text
