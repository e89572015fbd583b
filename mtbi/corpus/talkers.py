"""Right answers to questions about the talkers of a scene, and the values that its prompts name.

The keys of the answers are the tasks of the library `talkers`. A system that answers them follows instructions about several
talkers (MT-LLM, arXiv 2409.08596).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import regex

from mtbi import text_units
from mtbi.metrics.normalise import normalise
from mtbi.scenes.segments import SpeakerSegment
from mtbi.scenes.serialised import by_start, serialise, talkers, turns

KEYWORD_LETTERS = 5  #: a keyword has at least so many, where there is such a word
GENDERS = {"f": "female", "m": "male"}  #: as prompts write them, by the first letter of what manifests write
_EDGES = regex.compile(r"^[^\p{L}\p{N}\p{M}]+|[^\p{L}\p{N}\p{M}]+$")


def ask_about_talkers(
    segments: Sequence[SpeakerSegment], separator: str, draw: Random, genders: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The fields that prompts name, and the right answer of each task, for a scene with words and times.

    Talkers are numbered in the order of their first starts. `genders` are those of the talkers, as a manifest writes them.
    Without a word that only one talker says there is neither a `keyword` nor an answer about it, and without all genders
    neither a `talker_gender` nor an answer. Raises UserError where somebody's words hold the separator.
    """
    words = talkers(segments)
    texts = [serialise([text], separator) for text in words.values()]
    number = draw.randrange(len(texts))
    fields = {"separator": separator, "talker_number": str(number + 1)}
    answers = {
        "all_talkers": serialise(texts, separator),
        "all_turns": serialise(turns(segments), separator),
        "first_talker": texts[0],
        "last_talker": texts[-1],
        "numbered_talker": texts[number],
        "talker_count": str(len(texts)),
        "talker_overlap": "yes" if overlaps(segments) else "no",
    }
    if found := keywords(words):
        fields["keyword"], speaker = draw.choice(found)
        answers["keyword_talker"] = texts[list(words).index(speaker)]
    known = [GENDERS.get(genders.get(speaker, "").strip().lower()[:1], "") for speaker in words]
    if all(known):
        fields["talker_gender"] = chosen = draw.choice(sorted(set(known)))
        answers["gender_talkers"] = serialise(
            [text for text, gender in zip(texts, known, strict=True) if gender == chosen], separator
        )
    return fields, answers


def keywords(words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Words that only one talker says, each with the talker, from the words of each talker.

    A word is given as it is first said, without punctuation at its ends. Words are compared without case. Only long words are
    taken where there are some.
    """
    said: dict[str, list[tuple[str, str]]] = {}
    for speaker, text in words.items():
        for unit in text_units.units(text):
            if key := normalise(word := _EDGES.sub("", unit)):
                said.setdefault(key, []).append((word, speaker))
    own = [uses[0] for uses in said.values() if len({speaker for _, speaker in uses}) == 1]
    return [(word, speaker) for word, speaker in own if len(word) >= KEYWORD_LETTERS] or own


def overlaps(segments: Sequence[SpeakerSegment]) -> bool:
    """Whether two talkers ever speak at the same time."""
    last = 0.0
    for segment in by_start(segments):
        start, end = segment.span
        if start < last:
            return True
        last = max(last, end)
    return False
