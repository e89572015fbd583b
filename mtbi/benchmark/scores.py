"""From answers to tables: one cell for each group of speakers, part of the tasks, kind of wording and side of the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mtbi.benchmark.dialogues import Dialogue
from mtbi.benchmark.intervals import MeanWithInterval, bootstrap
from mtbi.metrics import METRICS, Metric

TRAINED, NEW, FORMATS = "trained tasks", "new tasks", "trained tasks, other format"


@dataclass(frozen=True)
class Cell:
    """The numbers of some dialogues."""

    group: str
    tasks: str  #: a task, or one of TRAINED, NEW, FORMATS
    wording: str  #: `train`, `heldout` or `all`
    prompt: str  #: `after` or `before` the speech
    dialogues: int
    recordings: int = 0
    voices: int = 0  #: speakers of the recordings
    #: By the name of a metric. Metrics that do not apply are absent; metrics of other versions of this code are kept.
    values: dict[str, MeanWithInterval | float] = field(default_factory=dict)

    def number(self, metric: str) -> float | None:
        """The number of a metric without its interval; None where the metric does not apply."""
        value = self.values.get(metric)
        return value.value if isinstance(value, MeanWithInterval) else value


IDENTITY = ("group", "tasks", "wording", "prompt", "dialogues", "recordings", "voices")  #: fields of a cell that are no metric


def measure(metric: Metric, dialogues: list[Dialogue]) -> MeanWithInterval | float | None:
    """A metric over the dialogues that have what it needs; None where there are none."""
    measured = [dialogue for dialogue in dialogues if metric.needs(dialogue)]
    if not measured:
        return None
    counts = [metric.count(dialogue) for dialogue in measured]
    if metric.interval == "none":
        return metric.total(counts)
    return bootstrap(zip((dialogue.cluster for dialogue in measured), counts, strict=True))


def summarise(group: str, tasks: str, wording: str, prompt: str, chosen: list[Dialogue]) -> Cell:
    """Every metric over the chosen dialogues, at least one."""
    values = {metric.name: measure(metric, chosen) for metric in METRICS}
    return Cell(
        group,
        tasks,
        wording,
        prompt,
        len(chosen),
        recordings=len({dialogue.cluster for dialogue in chosen}),
        voices=len({dialogue.speaker for dialogue in chosen if dialogue.speaker}),
        values={name: value for name, value in values.items() if value is not None},
    )


def part_of(task: str, trained: set[str]) -> str:
    """The part of the tasks that a task belongs to. A trained task under a constraint belongs to FORMATS."""
    base, _, constraint = task.partition("/")
    if task in trained:
        return TRAINED
    return FORMATS if constraint and base in trained else NEW


def table(dialogues: list[Dialogue], trained: set[str]) -> list[Cell]:
    """The cells of each group of speakers: the parts of the tasks, then single tasks, each by kind of wording."""
    return [
        summarise(group, tasks, wording, prompt, chosen)
        for group in dict.fromkeys(dialogue.group for dialogue in dialogues)
        for prompt, first in (("after", False), ("before", True))
        for tasks, part in parts([d for d in dialogues if d.group == group and d.prompt_first is first], trained)
        for wording, chosen in by_wording(part)
    ]


def parts(dialogues: list[Dialogue], trained: set[str]) -> Iterator[tuple[str, list[Dialogue]]]:
    """The dialogues of each part that is not empty, then of each task, and of each turn of a task with several."""
    for name in (TRAINED, NEW, FORMATS):
        if chosen := [dialogue for dialogue in dialogues if part_of(dialogue.task, trained) == name]:
            yield name, chosen
    for task in sorted({dialogue.task for dialogue in dialogues}, key=lambda task: (task not in trained, task)):
        chosen = [dialogue for dialogue in dialogues if dialogue.task == task]
        yield task, chosen
        turns = sorted({dialogue.turn for dialogue in chosen})
        for turn in turns if len(turns) > 1 else ():
            yield f"{task}, turn {turn}", [dialogue for dialogue in chosen if dialogue.turn == turn]


def by_wording(dialogues: list[Dialogue]) -> Iterator[tuple[str, list[Dialogue]]]:
    """All dialogues, then those in training wordings and those in held-out ones."""
    yield "all", dialogues
    for name, heldout in (("train", False), ("heldout", True)):
        if chosen := [dialogue for dialogue in dialogues if dialogue.heldout is heldout]:
            yield name, chosen


def percent(value: MeanWithInterval | float | None) -> str:
    """`94.1`, with its interval where there is one `94.1 (93.0–95.2)`, or a dash."""
    if value is None:
        return "–"
    if not isinstance(value, MeanWithInterval):
        return f"{100 * value:.1f}"
    if value.low is None or value.high is None:
        return f"{100 * value.value:.1f}"
    return f"{100 * value.value:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"


def render(cells: list[Cell]) -> str:
    """A Markdown table of the metrics that any of the cells has. A metric with a stand-in in every cell is left out."""
    shown = [
        metric
        for metric in METRICS
        if metric.column
        and any(metric.name in cell.values for cell in cells)
        and not all(metric.instead in cell.values for cell in cells if metric.name in cell.values)
    ]
    header = ["speakers", "tasks", "wording", "prompt", "dialogues", *(metric.column for metric in shown)]
    rows = [
        [cell.group, cell.tasks, cell.wording, cell.prompt, str(cell.dialogues), *(entry(cell, metric) for metric in shown)]
        for cell in cells
    ]
    return markdown(header, rows, left=4)


def entry(cell: Cell, metric: Metric) -> str:
    """A metric of a cell as the table shows it."""
    number = cell.number(metric.name)
    if metric.unit != "%" and number is not None:
        return f"{number:.3f}"
    return percent(cell.values.get(metric.name) if metric.interval == "shown" else number)


def notes(cells: list[Cell]) -> str:
    """What the intervals cover, group by group."""
    lines = ["Intervals: 95%, bootstrap over the recordings of this one run. They do not cover another training seed."]
    for group in dict.fromkeys(cell.group for cell in cells):
        largest = max((cell for cell in cells if cell.group == group), key=lambda cell: cell.recordings)
        recordings = f"{group}: {largest.recordings} recordings of"
        if largest.voices == 1:
            lines.append(f"{recordings} one speaker; the intervals say nothing about other speakers.")
        elif largest.voices:
            lines.append(f"{recordings} {largest.voices} speakers; the intervals are about these speakers.")
    return "\n".join(lines)


def markdown(header: list[str], rows: list[list[str]], left: int) -> str:
    """An aligned Markdown table. The first `left` columns are aligned left, the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def align(column: int, text: str) -> str:
        return text.ljust(widths[column]) if column < left else text.rjust(widths[column])

    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = [[align(column, text) for column, text in enumerate(row)] for row in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_json(cell: Cell) -> dict[str, Any]:
    """A cell as a flat record. Every metric of this version is there, with None where it does not apply."""
    values = {metric.name: None for metric in METRICS} | {
        name: asdict(value) if isinstance(value, MeanWithInterval) else value for name, value in cell.values.items()
    }
    return {name: getattr(cell, name) for name in IDENTITY} | values


def from_json(record: dict[str, Any]) -> Cell:
    """The inverse of `to_json`. Of reports of other versions, unknown numbers are kept and other unknown keys ignored."""
    values: dict[str, MeanWithInterval | float] = {}
    for name, value in record.items():
        if name in IDENTITY:
            continue
        if isinstance(value, dict) and "value" in value:
            values[name] = MeanWithInterval(value["value"], value.get("low"), value.get("high"))
        elif isinstance(value, int | float):
            values[name] = value
    return Cell(**{name: record[name] for name in IDENTITY if name in record}, values=values)
