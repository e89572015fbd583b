"""From answers to numbers: one cell for each group of speakers, part of the tasks, kind of wording and place of the prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from mtbi import metrics
from mtbi.benchmark import grading
from mtbi.benchmark.answers import CASCADE, NO_AUDIO, SHUFFLED, SILENCE
from mtbi.benchmark.dialogues import SPEECH, TEXT_LLM, Dialogue
from mtbi.benchmark.intervals import OverSeeds

TRAINED, NEW, FORMATS, ALL = "trained tasks", "new tasks", "trained tasks, other format", "all tasks"
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """Numbers over some dialogues. Shares are between 0 and 1; None where they do not apply."""

    group: str
    tasks: str  #: a task, or one of TRAINED, NEW, FORMATS, ALL
    wording: str  #: `train`, `heldout` or `all`
    prompt: str  #: `after` or `before` the speech
    dialogues: int
    accuracy: Estimate | None  #: answers that equal the gold answer
    agreement: Estimate  #: answers that equal the text LLM's
    follows: Estimate | None  #: answers in the form that was asked for, right or wrong
    kept: Estimate | None  #: accuracy / the text LLM's
    text_llm: float | None  #: accuracy of the text LLM reading the transcript
    cascade: float | None  #: … reading what a recogniser heard
    silence: float | None  #: accuracy of the speech LLM hearing silence
    no_audio: float | None  #: … nothing at all
    shuffled: float | None  #: … another utterance
    token_agreement: float | None  #: tokens of the text LLM's answers that are the speech LLM's likeliest
    divergence: float | None  #: Kullback-Leibler divergence from the text LLM's probabilities, nats a token
    mean_wording: float | None  #: accuracy averaged over wordings
    worst_wording: float | None  #: accuracy of the worst one (of those asked at least 10 times)
    wer: float | None  #: of tasks scored by it; where there is none, `wer_english`
    bleu: float | None
    chrf: float | None  #: of translations and free texts
    judged: float | None  #: mean of an LLM's judgements
    wer_english: float | None = None  #: after Whisper's English normaliser, of tasks scored so
    cer: float | None = None  #: of tasks scored by it, and of those scored by WER whose reference has no words
    bleu_characters: float | None = None  #: of translations into scripts without spaces, cut into characters
    recordings: int = 0  #: that the dialogues are about
    voices: int = 0  #: speakers of these


@lru_cache(maxsize=8)
def resample_counts(clusters: int) -> np.ndarray:
    """`(RESAMPLES, clusters)` how often each cluster is drawn in each bootstrap sample."""
    return np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES)


def estimate(dialogues: list[Dialogue], hit: Callable[[Dialogue], float], base: Callable[[Dialogue], float]) -> Estimate | None:
    """Σ hit / Σ base with a percentile bootstrap interval (Efron 1979) over recordings; None where the base is nothing.

    Dialogues about one recording fall together, so recordings are drawn and not dialogues.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for dialogue in dialogues:
        sums[dialogue.cluster][0] += hit(dialogue)
        sums[dialogue.cluster][1] += base(dialogue)
    table = np.array(list(sums.values())).reshape(-1, 2)
    hits, total = table.sum(0) if len(table) else (0.0, 0.0)
    if not total:
        return None
    drawn = resample_counts(len(table)) @ table
    ratios = drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(float(hits / total), float(low), float(high))


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def summarise(group: str, tasks: str, wording: str, prompt: str, chosen: list[Dialogue]) -> Cell:
    """The numbers over the chosen dialogues, at least one."""
    graded = [d for d in chosen if grading.is_graded(d)]
    formed = [d for d in chosen if d.form]
    compared = [d for d in chosen if d.tokens]
    tokens = sum(d.tokens for d in compared)

    def accuracy_of(who: str) -> float | None:
        return mean(grading.right(d, who) for d in graded if who in d.answers)

    wordings: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for dialogue in graded:
        wordings[dialogue.task, dialogue.wording].append(grading.right(dialogue, SPEECH))
    agreement = estimate(chosen, lambda d: metrics.exact_match(d.answers[SPEECH], d.answers[TEXT_LLM]), lambda d: 1)
    assert agreement
    return Cell(
        group,
        tasks,
        wording,
        prompt,
        len(chosen),
        accuracy=estimate(graded, lambda d: grading.right(d, SPEECH), lambda d: 1),
        agreement=agreement,
        follows=estimate(formed, lambda d: metrics.follows(d.answers[SPEECH], d.form), lambda d: 1),
        kept=estimate(graded, lambda d: grading.right(d, SPEECH), lambda d: grading.right(d, TEXT_LLM)),
        text_llm=accuracy_of(TEXT_LLM),
        cascade=accuracy_of(CASCADE),
        silence=accuracy_of(SILENCE),
        no_audio=accuracy_of(NO_AUDIO),
        shuffled=accuracy_of(SHUFFLED),
        token_agreement=sum(d.token_hits for d in compared) / tokens if tokens else None,
        divergence=sum(d.token_divergence for d in compared) / tokens if tokens else None,
        mean_wording=mean(sum(hits) / len(hits) for hits in wordings.values()),
        worst_wording=min((sum(hits) / len(hits) for hits in wordings.values() if len(hits) >= 10), default=None),
        judged=mean(d.judged for d in chosen if d.judged is not None),
        recordings=len({d.cluster for d in chosen}),
        voices=len({d.speaker for d in chosen if d.speaker}),
        **grading.scores(chosen),
    )


def part_of(task: str, trained: set[str]) -> str:
    """Which part of the tasks a task belongs to: a trained one under a constraint is a part of its own."""
    base, _, constraint = task.partition("/")
    if task in trained:
        return TRAINED
    return FORMATS if constraint and base in trained else NEW


def table(dialogues: list[Dialogue], trained: set[str]) -> list[Cell]:
    """For each group of speakers: the parts of the tasks, then each task; in all, training and held-out wordings."""
    return [
        summarise(group, tasks, wording, prompt, chosen)
        for group in dict.fromkeys(d.group for d in dialogues)
        for prompt, first in (("after", False), ("before", True))
        for tasks, part in parts([d for d in dialogues if d.group == group and d.prompt_first is first], trained)
        for wording, chosen in by_wording(part)
    ]


def parts(dialogues: list[Dialogue], trained: set[str]) -> Iterator[tuple[str, list[Dialogue]]]:
    """The dialogues of each part that is not empty, then of each task."""
    for name in (TRAINED, NEW, FORMATS):
        if chosen := [d for d in dialogues if part_of(d.task, trained) == name]:
            yield name, chosen
    for task in sorted({d.task for d in dialogues}, key=lambda t: (t not in trained, t)):
        yield task, [d for d in dialogues if d.task == task]


def by_wording(dialogues: list[Dialogue]) -> Iterator[tuple[str, list[Dialogue]]]:
    """All dialogues, those in training wordings and those in held-out ones."""
    yield "all", dialogues
    for name, heldout in (("train", False), ("heldout", True)):
        if chosen := [d for d in dialogues if d.heldout is heldout]:
            yield name, chosen


COLUMNS: dict[str, Callable[[Cell], Any]] = {
    "accuracy": lambda c: c.accuracy,
    "text LLM": lambda c: c.text_llm,
    "kept": lambda c: c.kept,
    "cascade": lambda c: c.cascade,
    "agreement": lambda c: c.agreement,
    "form": lambda c: c.follows and c.follows.value,
    "worst wording": lambda c: c.worst_wording,
    "silence": lambda c: c.silence,
    "no audio": lambda c: c.no_audio,
    "shuffled": lambda c: c.shuffled,
    "WER": lambda c: c.wer,
    "WER (English)": lambda c: c.wer_english,
    "CER": lambda c: c.cer,
    "BLEU": lambda c: c.bleu,
    "BLEU (characters)": lambda c: c.bleu_characters,
    "chrF": lambda c: c.chrf,
    "judged": lambda c: c.judged,
}


def percent(value: Estimate | OverSeeds | float | None) -> str:
    """`94.1`, with its interval where there is one `94.1 (93.0–95.2)`, or a dash."""
    if value is None:
        return "–"
    if isinstance(value, OverSeeds | Estimate):
        if value.low is None or value.high is None:
            return f"{100 * value.value:.1f}"
        return f"{100 * value.value:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"
    return f"{100 * value:.1f}"


def render(cells: list[Cell]) -> str:
    """A Markdown table, in per cent, of the columns that hold something."""
    shown = [name for name, get in COLUMNS.items() if any(get(cell) is not None for cell in cells)]
    header = ["speakers", "tasks", "wording", "prompt", "dialogues", *shown]
    rows = [
        [c.group, c.tasks, c.wording, c.prompt, str(c.dialogues), *(percent(COLUMNS[name](c)) for name in shown)] for c in cells
    ]
    return markdown(header, rows, left=4)


def notes(cells: list[Cell]) -> str:
    """What the intervals speak of, group by group."""
    lines = ["Intervals: 95%, bootstrap over the recordings of this one run. They do not cover another training seed."]
    for group in dict.fromkeys(cell.group for cell in cells):
        most = max((cell for cell in cells if cell.group == group), key=lambda cell: cell.recordings)
        heard = f"{group}: {most.recordings} recordings of"
        if most.voices == 1:
            lines.append(f"{heard} one speaker; the intervals say nothing about other speakers.")
        elif most.voices:
            lines.append(f"{heard} {most.voices} speakers; the intervals are about these speakers.")
    return "\n".join(lines)


def markdown(header: list[str], rows: list[list[str]], left: int) -> str:
    """An aligned Markdown table, the first `left` columns to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def draw(values: list[str]) -> str:
        aligned = [v.ljust(w) if place < left else v.rjust(w) for place, (v, w) in enumerate(zip(values, widths, strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * w if place < left else "-" * (w - 1) + ":" for place, w in enumerate(widths)]
    return "\n".join([draw(header), draw(rule), *map(draw, rows)])


def to_json(cell: Cell) -> dict[str, Any]:
    """Every number of a cell."""
    return asdict(cell)


def from_json(record: dict[str, Any]) -> Cell:
    """The inverse of `to_json`, also of other versions of this code: None is what they did not measure."""
    values: dict[str, Any] = {one.name: None for one in fields(Cell) if one.default is MISSING}
    values |= {one.name: record[one.name] for one in fields(Cell) if one.name in record}
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = Estimate(value["value"], value["low"], value["high"])
    return Cell(**values)
