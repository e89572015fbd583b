"""The importer of the Free Spoken Digit Dataset, the recordings of the miniature world."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mtbi.corpus import paths
from mtbi.corpus.manifest import Utterance
from mtbi.demo.world import DIGITS

FILE_NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.(?:wav|flac)")
UNSEEN_SPEAKER = "theo"  #: all of this speaker's recordings are for test
TEST_NUMBERS = range(40, 50)  #: recordings of each digit that are for test, of every speaker


def split_of(speaker: str, number: int) -> str:
    """The split of a recording, by its speaker and its number among the speaker's recordings of the digit."""
    if speaker == UNSEEN_SPEAKER:
        return "test_unseen"
    return "test_known" if number in TEST_NUMBERS else "train"


def import_fsdd(source: Path) -> Iterator[Utterance]:
    """The Free Spoken Digit Dataset, `{digit}_{speaker}_{n}.wav` or `.flac` at any depth.

    Speaker theo is `test_unseen`; recordings 40 to 49 of the others are `test_known`; the rest is `train`.
    """
    for path in paths.walk(source).files:
        if match := FILE_NAME.fullmatch(path.name):
            digit, speaker, number = match.groups()
            split = split_of(speaker, int(number))
            yield Utterance(f"fsdd-{path.stem}", str(path), DIGITS[int(digit)], f"fsdd-{speaker}", language="en", split=split)
