"""What stands around an utterance in a dialogue: templates over the fields of the manifest.

The text LLM reads `behaviour.reads`, in which `{text}` is the transcript. The speech LLM gets `behaviour.hears`, in which
`{sound}` is the recording. Any other `{name}` is a field of the utterance's line in the manifest. So the text LLM may read what
the transcript does not say, such as the speaker's gender (DeSTA2, arXiv 2409.20007), and the speech LLM may get text beside
the sound (VoiceTextBlender, arXiv 2410.17485). The wordings of tasks may name such fields too, but not the transcript.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.text_units import nfc

READS, HEARS = "{text}", "{sound}"  #: the utterance alone
FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Rendering:
    """A template, cut at the utterance."""

    setting: str  #: the recipe field, for messages
    before: str
    after: str

    def around(self, utterance: Utterance) -> tuple[str, str]:
        """The text before and after the utterance. Raises UserError where it lacks a field of the template."""
        return self._fill(self.before, utterance), self._fill(self.after, utterance)

    def _fill(self, template: str, utterance: Utterance) -> str:
        return FIELD.sub(lambda match: self._value(match[1], utterance), template)

    def _value(self, name: str, utterance: Utterance) -> str:
        fields = fields_of(utterance)
        if name not in fields:
            raise UserError(
                f"{self.setting}: utterance {utterance.id!r} has no field {name!r}. Its fields are {', '.join(fields)}. Write "
                "the field into the manifest, or leave it out of the template."
            )
        return fields[name]


def fields_of(utterance: Utterance) -> dict[str, str]:
    """The fields of an utterance that are text or a number, as text. Fields of our own are left out where they are empty."""
    own: dict[str, Any] = {
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "duration_s": utterance.duration_s,
    }
    values = {name: value for name, value in own.items() if value} | utterance.extra
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float) and value is not True}
    return {name: nfc(value) if isinstance(value, str) else f"{value:g}" for name, value in plain.items() if value is not False}


def names_in(wording: str) -> set[str]:
    """The names in braces of a task's wording. `{text}` and `{sound}` are none: both LLMs read the wording."""
    return {name for name in FIELD.findall(wording) if f"{{{name}}}" not in (READS, HEARS)}


def fill(wording: str, values: Mapping[str, str]) -> str:
    """A wording with the values of these names. All other braces stay."""
    return FIELD.sub(lambda match: values.get(match[1], match[0]), wording)


def parse(setting: str, template: str, utterance: str) -> Rendering:
    """The rendering of a recipe field. `utterance` is the mark that the utterance replaces, `READS` or `HEARS`.

    Raises UserError where the mark does not stand in the template exactly once.
    """
    if template.count(utterance) != 1:
        raise UserError(f"{setting} must hold {utterance} exactly once, not {template!r}")
    before, _, after = template.partition(utterance)
    if left := next((part for part in (before, after) if HEARS in part), None):
        raise UserError(f"{setting}: {HEARS} cannot stand in {left!r}: the text LLM reads text alone")
    return Rendering(setting, before, after)


def read_by_llm(template: str) -> Rendering:
    """The rendering of `behaviour.reads`."""
    return parse("behaviour.reads", template, READS)


def heard(template: str) -> Rendering:
    """The rendering of `behaviour.hears`."""
    return parse("behaviour.hears", template, HEARS)
