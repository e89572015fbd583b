"""How well the speech LLM imitates the text LLM, by task and wording, on held-out speech.

Each dialogue of an evaluation shard is answered three times: by the text LLM from the transcript (stored in the shard, the
upper line), by the speech LLM from the sound, and by the speech LLM from silence of the same length (the lower line: what the
prompt alone gives away).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mtbi.data.shards import Shards
from mtbi.errors import UserError
from mtbi.model.generate import generate
from mtbi.tasks import registry, scoring
from mtbi.tasks.behaviour import Behaviour
from mtbi.trained import TrainedRun

SPARE_TOKENS = 16  #: an answer may be this much longer than twice the text LLM's before it is cut off


@dataclass
class Dialogue:
    """One prompt about one utterance and every answer to it."""

    group: str  #: of speakers, for example `test_known`
    utterance: str
    speaker: str
    task: str
    prompt: str
    heldout: bool  #: the wording was kept out of training
    transcript: str
    gold: str | None  #: the right answer, where there is one
    text_llm: str
    speech_llm: str = ""
    silence: str | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table. Shares are between 0 and 1, None where they do not apply."""

    group: str
    tasks: str  #: a task, or `trained tasks`, `new tasks`, `all tasks`
    wording: str  #: `train`, `heldout` or `all`
    dialogues: int
    accuracy: float | None  #: the speech LLM's answers that equal the gold answer
    text_llm: float | None  #: the same for the text LLM reading the transcript
    silence: float | None  #: the same for the speech LLM hearing silence
    agreement: float  #: the speech LLM's answers that agree with the text LLM's
    wer: float | None  #: word error rate of the speech LLM's answers, for tasks that repeat the transcript

    @property
    def kept(self) -> float | None:
        """Share of the text LLM's accuracy that the speech LLM keeps."""
        return None if self.accuracy is None or not self.text_llm else self.accuracy / self.text_llm


def group_name(place: str) -> str:
    """`runs/demo/data/test_known/shards` → `test_known`."""
    parts = [part for part in place.rstrip("/").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "shards" else parts[-1]


def choose(shards: Shards, dialogues: int) -> list[int]:
    """Utterances drawn at random that together hold about that many dialogues (0 = all), sorted by length to pad little."""
    table = shards.index.utterances
    order = np.random.default_rng(0).permutation(len(table))
    if dialogues:
        held = np.cumsum(table["branches"][order].astype(np.int64))
        order = order[: int(np.searchsorted(held, dialogues)) + 1]
    return [int(number) for number in order[np.argsort(table["samples"][order], kind="stable")]]


Turn = tuple[Dialogue, Behaviour, np.ndarray]


def read_dialogues(group: str, shards: Shards, dialogues: int) -> Iterator[Turn]:
    """The stored dialogues with their speech `(samples,)`."""
    for number in choose(shards, dialogues):
        sample = shards[number]
        for stored in sample.behaviours:
            yield (
                Dialogue(
                    group,
                    sample.id,
                    sample.speaker,
                    stored.task,
                    stored.prompt,
                    stored.heldout,
                    sample.text,
                    stored.gold,
                    stored.answer,
                ),
                stored,
                sample.waveform,
            )


def batches(turns: Iterable[Turn], size: int) -> Iterator[list[Turn]]:
    """Lists of `size` turns, the last one shorter."""
    for _, chunk in groupby(enumerate(turns), key=lambda numbered: numbered[0] // size):
        yield [turn for _, turn in chunk]


def answer(run: TrainedRun, turns: list[Turn], silent: bool) -> list[str]:
    """The speech LLM's greedy answers."""
    prefix = torch.tensor(run.chat.prefix_ids)
    prompts: list[list[torch.Tensor | np.ndarray]] = [
        [prefix, np.zeros_like(wave) if silent else wave, torch.tensor(stored.prompt_ids, dtype=torch.long)]
        for _, stored, wave in turns
    ]
    longest = 2 * max(len(stored.answer_ids) for _, stored, _ in turns) + SPARE_TOKENS
    answers = generate(run.model, prompts, longest, run.chat.end_id)
    return run.chat.tokenizer.batch_decode(answers, skip_special_tokens=True)


def answer_all(run: TrainedRun, groups: dict[str, Shards], dialogues: int, batch_size: int, silence: bool) -> list[Dialogue]:
    """Every dialogue of every group with the speech LLM's answers filled in."""
    done: list[Dialogue] = []
    for name, shards in groups.items():
        total = int(shards.index.utterances["branches"][choose(shards, dialogues)].sum())
        with tqdm(total=total, desc=name, unit="dialogue", disable=None) as bar:
            for turns in batches(read_dialogues(name, shards, dialogues), batch_size):
                heard = answer(run, turns, silent=False)
                unheard = answer(run, turns, silent=True) if silence else [None] * len(turns)
                for (dialogue, _, _), spoken, silent in zip(turns, heard, unheard, strict=True):
                    done.append(replace(dialogue, speech_llm=spoken, silence=silent))
                bar.update(len(turns))
    return done


def share(values: Iterable[bool]) -> float | None:
    """Mean of truth values; None for none."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def summarise(group: str, tasks: str, wording: str, chosen: list[Dialogue], scorers: dict[str, str]) -> Line:
    """One line of the table over the chosen dialogues (at least one)."""
    known = [dialogue for dialogue in chosen if dialogue.gold is not None]
    spoken = [dialogue for dialogue in chosen if scorers.get(dialogue.task) == "wer"]
    same = scoring.exact_match
    agreements = [scoring.agreement(dialogue.speech_llm, dialogue.text_llm) for dialogue in chosen]
    return Line(
        group,
        tasks,
        wording,
        len(chosen),
        accuracy=share(same(d.speech_llm, d.gold or "") for d in known),
        text_llm=share(same(d.text_llm, d.gold or "") for d in known),
        silence=share(same(d.silence, d.gold or "") for d in known if d.silence is not None),
        agreement=sum(agreements) / len(agreements),
        wer=scoring.wer([d.speech_llm for d in spoken], [d.gold or d.transcript for d in spoken]) if spoken else None,
    )


def table_lines(dialogues: list[Dialogue], trained: set[str], scorers: dict[str, str]) -> list[Line]:
    """For each group of speakers: trained and new tasks as a whole, then each task; in all, training and held-out wordings."""
    lines: list[Line] = []
    for group in dict.fromkeys(dialogue.group for dialogue in dialogues):
        mine = [dialogue for dialogue in dialogues if dialogue.group == group]
        parts = {
            "trained tasks": [d for d in mine if d.task in trained],
            "new tasks": [d for d in mine if d.task not in trained],
            **{
                task: [d for d in mine if d.task == task]
                for task in sorted({d.task for d in mine}, key=lambda t: (t not in trained, t))
            },
        }
        for name, part in parts.items():
            wordings = {"all": part, "train": [d for d in part if not d.heldout], "heldout": [d for d in part if d.heldout]}
            lines += [summarise(group, name, wording, chosen, scorers) for wording, chosen in wordings.items() if chosen]
    return lines


def render(lines: list[Line]) -> str:
    """A Markdown table."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    header = ["speakers", "tasks", "wording", "dialogues", "accuracy", "text LLM", "kept", "silence", "agreement", "WER"]
    rows = [
        [
            line.group, line.tasks, line.wording, str(line.dialogues), percent(line.accuracy), percent(line.text_llm),
            percent(line.kept), percent(line.silence), percent(line.agreement), percent(line.wer),
        ]
        for line in lines
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def draw(cells: list[str]) -> str:
        aligned = [c.ljust(w) if place < 3 else c.rjust(w) for place, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * w if place < 3 else "-" * (w - 1) + ":" for place, w in enumerate(widths)]
    return "\n".join([draw(header), draw(rule), *map(draw, rows)])


@dataclass
class Report:
    """The outcome of an evaluation, as saved in RUN/evaluation/CHECKPOINT."""

    folder: Path
    lines: list[Line]
    dialogues: list[Dialogue]

    def __str__(self) -> str:
        """The summary lines; single tasks are in `table.md`."""
        return render([line for line in self.lines if line.tasks.endswith(" tasks")])


def evaluate(
    run: TrainedRun, places: dict[str, str] | None = None, dialogues: int = 2000, batch_size: int = 64, silence: bool = True
) -> Report:
    """Answer `dialogues` dialogues of each evaluation shard folder and save answers, numbers and the table beside the run.

    `places` names the groups and their shards; by default they are the recipe's `data.eval_shards`. Raises UserError where
    there are none, or where shards were made for another LLM.
    """
    recipe = run.recipe
    places = places or {group_name(place): place for place in recipe.data.eval_shards}
    if not places:
        raise UserError("no evaluation shards: name them with --shards NAME=FOLDER, or set data.eval_shards in the recipe")
    groups = {name: open_shards(place, run) for name, place in places.items()}
    trained = {task for place in recipe.data.shards for task in open_shards(place, run).index.tasks}
    scorers = {name: task.scorer for name, task in registry.load(recipe.behaviour.library).items()}
    answered = answer_all(run, groups, dialogues, batch_size, silence)
    lines = table_lines(answered, trained, scorers)
    report = Report(run.folder / "evaluation" / run.checkpoint.name, lines, answered)
    save(report, run)
    return report


def open_shards(place: str, run: TrainedRun) -> Shards:
    """Shards of a folder, refused when they were made for another LLM or chat template."""
    data = run.recipe.data
    shards = Shards(place, data.cache_dir or str(run.folder / "cache"))
    if shards.index.fingerprint != run.chat.fingerprint:
        raise UserError(
            f"{place}: made for another LLM, chat template or system prompt than {run.recipe.model.llm}; make the shards again"
        )
    return shards


def save(report: Report, run: TrainedRun) -> None:
    """`report.json` (every number), `table.md` and `answers.jsonl` (every dialogue)."""
    report.folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "checkpoint": str(run.checkpoint),
        "recipe": run.recipe.name,
        "lines": [{**asdict(line), "kept": line.kept} for line in report.lines],
    }
    (report.folder / "report.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (report.folder / "table.md").write_text(render(report.lines) + "\n", encoding="utf-8")
    answers = (json.dumps(asdict(dialogue), ensure_ascii=False) + "\n" for dialogue in report.dialogues)
    (report.folder / "answers.jsonl").write_text("".join(answers), encoding="utf-8")
