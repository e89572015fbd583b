"""Numbers and histograms of a manifest, of answers or of shards: `mtbi data stats`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtbi import text_units
from mtbi.answers.store import AnswerStore
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.corpus import manifest
from mtbi.errors import UserError
from mtbi.shards.index import Index
from mtbi.shards.read import Shards

MOST_BINS = 15
LONGEST_LABEL = 40
EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of several bins of equal width, the first of which starts at 0."""

    width: float
    counts: list[int]
    largest: float  #: value; the last bin takes everything above it too
    whole: bool  #: the values are whole numbers

    @classmethod
    def of(cls, values: np.ndarray, whole: bool = False) -> Histogram:
        """Bins up to the 99th percentile of `values`, each 1, 2 or 5 times a power of ten wide."""
        if not len(values):
            return cls(0.0, [], 0.0, whole)
        top = float(np.quantile(values, 0.99, method="higher"))
        scale = 10.0 ** (math.floor(math.log10(top or 1.0)) - 1)
        widths = (step * scale for step in (1, 2, 5, 10, 20))
        width = next(width for width in widths if top < MOST_BINS * width and width >= whole)
        last = int(top // width)
        bins = np.minimum(values // width, last).astype(np.int64)
        return cls(width, np.bincount(bins).tolist(), float(values.max()), whole)

    @property
    def starts(self) -> list[float]:
        """Where each bin begins."""
        return [number * self.width for number in range(len(self.counts))]

    @property
    def open_ended(self) -> bool:
        """Whether values lie above the last bin's own width."""
        return bool(self.counts) and self.largest >= self.width * len(self.counts)

    @property
    def by_label(self) -> dict[str, int]:
        """The counts by `2–4`, `2–3` or `2` (whole numbers), and `from 14` for a last bin that is open."""
        gap = int(self.whole)
        names = [f"{low:g}" if self.width == gap else f"{low:g}–{low + self.width - gap:g}" for low in self.starts]
        if self.open_ended:
            names[-1] = f"from {self.starts[-1]:g}"
        return dict(zip(names, self.counts, strict=True))


@dataclass(frozen=True)
class Stats:
    """Numbers of a manifest or of shards. Shards hold no speakers, and the words of aligned utterances only."""

    place: str
    utterances: int
    aligned: int  #: utterances with word times
    measured: int  #: utterances whose duration is known
    hours: float  #: of those
    words: int  #: units of `mtbi.text_units`: characters, where the script has no spaces
    durations: Histogram  #: seconds
    transcripts: Histogram  #: words
    speakers: int | None = None
    dialogues: int | None = None
    answer_tokens: int | None = None
    tasks: dict[str, int] = field(default_factory=dict)  #: dialogues of each task
    rejected: dict[str, int] = field(default_factory=dict)  #: records left out, by kind of reason, the commonest first
    text_only: int = 0  #: utterances without sound
    single: int = 0  #: utterances of one word, which cannot be interleaved


def read(address: str, cache_dir: str = "") -> Stats:
    """The numbers of a manifest (`.jsonl` or `.json`), or of a folder or s3:// address of shards.

    Raises UserError where neither can be read there.
    """
    if address.endswith((".jsonl", ".json")) or Path(address).is_file():
        return of_manifest(Path(address))
    return of_shards(address, Shards(address, cache_dir).index)


def of_manifest(path: Path) -> Stats:
    """The numbers of a manifest, and of `rejected.jsonl` beside it."""
    utterances = manifest.read_manifest(path)
    spoken = [utterance for utterance in utterances if utterance.audio]
    durations = np.array([utterance.duration_s for utterance in spoken], np.float64)
    durations = durations[np.isfinite(durations) & (durations > 0)]
    words = np.array([text_units.count(utterance.text) for utterance in utterances], np.int64)
    return Stats(
        str(path),
        len(utterances),
        sum(utterance.words is not None for utterance in utterances),
        len(durations),
        float(durations.sum()) / 3600,
        int(words.sum()),
        Histogram.of(durations),
        Histogram.of(words, whole=True),
        speakers=len({utterance.speaker for utterance in utterances}),
        rejected=read_rejected(path.with_name("rejected.jsonl")),
        text_only=len(utterances) - len(spoken),
        single=int((words == 1).sum()),
    )


def read_rejected(path: Path) -> dict[str, int]:
    """How many records each kind of reason kept out; empty where the file is missing. Raises UserError for a damaged one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return manifest.count_reasons([json.loads(line) for line in lines])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of rejected records ({error!r}); delete it, or import the corpus again") from error


def of_shards(address: str, index: Index) -> Stats:
    """The numbers of shards, from their index alone."""
    samples, words = index.utterances["samples"], index.spoken_words
    durations = samples[samples > 0] / SAMPLE_RATE
    drawn = np.bincount(index.branches["task"], minlength=len(index.tasks)).tolist()
    return Stats(
        address,
        len(samples),
        int((words > 0).sum()),
        len(durations),
        float(durations.sum()) / 3600,
        int(words.sum(dtype="u8")),
        Histogram.of(durations),
        Histogram.of(words[words > 0], whole=True),
        dialogues=len(index.branches),
        answer_tokens=int(index.branches["answer_tokens"].sum(dtype="u8")),
        tasks=dict(zip(index.tasks, drawn, strict=False)),
        text_only=len(samples) - len(durations),
        single=int((words == 1).sum()),
    )


def render(stats: Stats, columns: int) -> str:
    """The numbers, and bars that fit into so many columns."""
    in_shards = stats.dialogues is not None
    unmeasured = stats.utterances - stats.text_only - stats.measured
    lines = [
        f"utterances  {stats.utterances}, {stats.aligned} of them aligned",
        f"speech      {stats.hours:.2f} h" + (f", without {unmeasured} utterances of unknown duration" if unmeasured else ""),
    ]
    if not in_shards:
        lines.append(f"speakers    {stats.speakers}")
    lines.append(f"words       {stats.words}" + (" in aligned utterances" if in_shards else ""))
    if stats.text_only:
        lines.append(f"text alone  {stats.text_only} utterances, without sound")
    if stats.single:
        lines.append(f"one word    {stats.single} utterances, never interleaved")
    if in_shards:
        lines.append(f"dialogues   {stats.dialogues}, {stats.answer_tokens} answer tokens")
    for title, counts in sections(stats).items():
        lines += ["", title, *bars(counts, columns)]
    return "\n".join(lines)


def answer_counts(answers: AnswerStore) -> dict[str, dict[str, int]]:
    """The answers of `mtbi behave` that training may use, by task, and those that are left out, by task and reason."""
    left_out = {f"{task}: {reason}": count for (task, reason), count in sorted(answers.left_out.items())}
    return {"kept": dict(sorted(answers.kept.items())), "left_out": left_out}


def render_answers(answers: AnswerStore, columns: int) -> str:
    """The answers' counts, as bars that fit into so many columns."""
    titles = {
        "kept": "answers by task",
        "left_out": "answers that training does not use, by task and reason (behaviour.filter)",
    }
    lines = [
        line for key, counts in answer_counts(answers).items() if counts for line in ("", titles[key], *bars(counts, columns))
    ]
    return "\n".join(lines[1:])


def sections(stats: Stats) -> dict[str, dict[str, int]]:
    """The counts that are shown as bars, by title. Empty ones are left out."""
    titled = {
        "utterances by duration in seconds": stats.durations.by_label,
        "utterances by words of the transcript": stats.transcripts.by_label,
        "dialogues by task": stats.tasks,
        "rejected records by reason (rejected.jsonl)": stats.rejected,
    }
    return {title: counts for title, counts in titled.items() if counts}


def shorten(label: str) -> str:
    """The label, or its beginning."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def bars(counts: dict[str, int], columns: int) -> list[str]:
    """A line for each count: its label, itself and a bar."""
    labels = [shorten(name) for name in counts]
    label, number = max(map(len, labels)), max(len(str(count)) for count in counts.values())
    room = max(columns - label - number - 5, 8)
    most = max(*counts.values(), 1)
    lines = []
    for name, count in zip(labels, counts.values(), strict=True):
        whole, rest = divmod(math.ceil(8 * room * count / most), 8)
        lines.append(f"  {name:{label}s} {count:{number}d}  {'█' * whole}{EIGHTHS[rest]}".rstrip())
    return lines


def plot(stats: Stats, folder: Path) -> list[Path]:
    """The same as PNG files in `folder`; returns them. Raises UserError where matplotlib is missing."""
    from mtbi.pictures import figure, finish

    made = {}
    for name, unit, histogram in (("durations", "seconds", stats.durations), ("transcripts", "words", stats.transcripts)):
        if histogram.counts:
            made[name], axes = figure(7.5, 4.8)
            shift = 0.5 if histogram.whole else 0.0  # the bar of 2 words reaches from 1.5 to 2.5
            edges = [low - shift for low in histogram.starts]
            axes.bar(edges, histogram.counts, histogram.width, align="edge", edgecolor="white")
            beyond = f" (last bar: up to {histogram.largest:g})" if histogram.open_ended else ""
            axes.set(xlabel=f"{unit}{beyond}", ylabel="utterances", title=stats.place)
            axes.grid(alpha=0.3, axis="y")
    for name, unit, counts in (("tasks", "dialogues", stats.tasks), ("rejected", "rejected records", stats.rejected)):
        if counts:
            made[name], axes = figure(7.5, 1.2 + 0.25 * len(counts))
            axes.barh([shorten(label) for label in counts], list(counts.values()))
            axes.invert_yaxis()
            axes.set(xlabel=unit, title=stats.place)
            axes.grid(alpha=0.3, axis="x")
    for name, picture in made.items():
        finish(picture, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in made]
