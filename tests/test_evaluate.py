"""Evaluation: the arithmetic of the table on made-up dialogues, and the whole way on a few real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi import evaluate, recipe
from mtbi.data import shards
from mtbi.data.audio import encode
from mtbi.data.corpus import Utterance
from mtbi.demo import world
from mtbi.errors import UserError
from mtbi.evaluate import Dialogue
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import BehaviourConfig
from mtbi.tasks import behaviour
from mtbi.tasks.chat import ChatFormat, load_llm_tokenizer
from mtbi.tasks.teacher import build_teacher
from mtbi.trained import TrainedRun

SCORERS = {"repeat": "wer", "count": "exact", "summary": "exact"}


def dialogue(
    task: str, gold: str | None, text_llm: str, heard: str, silence: str | None = None, heldout: bool = False
) -> Dialogue:
    return Dialogue("known", "u", "s", task, "?", heldout, "one two", gold, text_llm, heard, silence)


def test_a_line_counts_each_share() -> None:
    chosen = [
        dialogue("count", "two", "two", "Two.", "one"),
        dialogue("count", "two", "two", "three", "two"),
        dialogue("count", "two", "three", "three", "one"),
        dialogue("count", "two", "two", "two", "one"),
    ]
    line = evaluate.summarise("known", "count", "all", chosen, SCORERS)
    assert (line.accuracy, line.text_llm, line.silence, line.agreement, line.wer) == (0.5, 0.75, 0.25, 0.75, None)
    assert line.kept == pytest.approx(2 / 3)


def test_a_task_without_right_answers_has_only_agreement() -> None:
    line = evaluate.summarise("known", "summary", "all", [dialogue("summary", None, "a talk", "A talk")], SCORERS)
    assert (line.accuracy, line.text_llm, line.silence, line.kept, line.agreement) == (None, None, None, None, 1.0)


def test_word_error_rate_is_against_the_transcript_where_no_gold_is_known() -> None:
    chosen = [dialogue("repeat", None, "one two", "one two"), dialogue("repeat", None, "one two", "one")]
    assert evaluate.summarise("known", "repeat", "all", chosen, SCORERS).wer == 0.25


def test_lines_are_grouped_and_drawn() -> None:
    chosen = [dialogue("count", "two", "two", "two"), dialogue("repeat", "one two", "one two", "one", heldout=True)]
    lines = evaluate.table_lines(chosen, {"repeat"}, SCORERS)
    assert [(line.tasks, line.wording, line.accuracy) for line in lines] == [
        ("trained tasks", "all", 0.0),
        ("trained tasks", "heldout", 0.0),
        ("new tasks", "all", 1.0),
        ("new tasks", "train", 1.0),
        ("repeat", "all", 0.0),
        ("repeat", "heldout", 0.0),
        ("count", "all", 1.0),
        ("count", "train", 1.0),
    ]
    drawn = evaluate.render(lines).splitlines()
    assert len({len(row) for row in drawn}) == 1
    assert [cell.strip() for cell in drawn[2].split("|")[1:-1]] == [
        "known", "trained tasks", "all", "1", "0.0", "100.0", "0.0", "–", "0.0", "50.0",
    ]  # fmt: skip


def test_group_names() -> None:
    assert evaluate.group_name("runs/demo/data/test_known/shards") == "test_known"
    assert evaluate.group_name("s3://bucket/dev/") == "dev"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run with an untrained adapter and two shard folders of noise that claims to be digits."""
    folder = tmp_path_factory.mktemp("run")
    chat, rng = ChatFormat(load_llm_tokenizer("demo")), np.random.default_rng(0)
    for part, tasks in (("train", ["repeat", "count"]), ("test", ["repeat", "count", "twice"])):
        utterances = []
        for number, text in enumerate(["three five", "one two nine", "seven seven four zero"]):
            path = folder / part / f"{number}.flac"
            path.parent.mkdir(exist_ok=True)
            samples = 8000 * (number + 1)
            path.write_bytes(encode(0.1 * rng.standard_normal(samples).astype(np.float32)))
            answers = {task: world.gold_answer(task, text) for task in tasks}
            utterances.append(Utterance(f"{part}-{number}", path.name, text, "s", samples / 16000, answers=answers))
        config = BehaviourConfig(tasks=tasks, wordings="all", top_k=4, max_new_tokens=24)
        teacher = build_teacher(recipe.load("demo").model, config)
        behaviour.generate(utterances, config, teacher, chat, folder / part / "behaviour", seed=1)
        shards.write(
            utterances,
            folder / part,
            behaviour.BehaviourStore(folder / part / "behaviour"),
            chat,
            str(folder / part / "shards"),
        )
    chosen = recipe.load(
        "demo", [f"run_dir={folder}", "data.shards=['{run_dir}/train/shards']", "data.eval_shards=['{run_dir}/test/shards']"]
    )
    torch.manual_seed(0)
    model = build_speech_llm(chosen.model, chosen.loss, torch.float32, torch.device("cpu"), tasks=1)
    return TrainedRun(folder, folder / "step-00000007", chosen, model.eval(), chat, torch.device("cpu"))


def test_the_whole_way(run: TrainedRun) -> None:
    report = evaluate.evaluate(run, dialogues=0, batch_size=4)
    assert {(d.utterance, d.task) for d in report.dialogues} == {
        (f"test-{number}", task) for number in range(3) for task in ("repeat", "count", "twice")
    }
    by_name = {(line.tasks, line.wording): line for line in report.lines}
    assert by_name["trained tasks", "all"].text_llm == 1.0  # the shipped text LLM reads these strings without a mistake
    assert by_name["new tasks", "all"].dialogues == 3
    assert all(line.group == "test" and line.silence is not None for line in report.lines)
    assert all(d.speech_llm is not None and d.silence is not None for d in report.dialogues)
    saved = json.loads((run.folder / "evaluation" / "step-00000007" / "report.json").read_text())
    assert len(saved["lines"]) == len(report.lines)
    assert len((report.folder / "answers.jsonl").read_text().splitlines()) == 9
    assert (report.folder / "table.md").read_text().count("\n") == len(report.lines) + 2


def test_batching_does_not_change_answers(run: TrainedRun) -> None:
    turns = list(evaluate.read_dialogues("test", evaluate.open_shards(run.recipe.data.eval_shards[0], run), 0))
    together = evaluate.answer(run, turns, silent=False)
    assert together == [evaluate.answer(run, [turn], silent=False)[0] for turn in turns]


def test_a_part_of_the_dialogues_is_drawn_and_sorted_by_length(run: TrainedRun) -> None:
    opened = evaluate.open_shards(run.recipe.data.eval_shards[0], run)
    chosen = evaluate.choose(opened, 5)
    assert len(chosen) == 2
    samples = opened.index.utterances["samples"][chosen]
    assert list(samples) == sorted(samples)


def test_shards_of_another_llm_are_refused(run: TrainedRun) -> None:
    other = TrainedRun(
        run.folder, run.checkpoint, run.recipe, run.model, ChatFormat(run.chat.tokenizer, "be brief"), run.device
    )
    with pytest.raises(UserError, match="made for another LLM, chat template or system prompt"):
        evaluate.evaluate(other)


def test_no_shards(run: TrainedRun, tmp_path: Path) -> None:
    bare = recipe.load("demo", ["data.eval_shards=[]"])
    with pytest.raises(UserError, match="no evaluation shards"):
        evaluate.evaluate(TrainedRun(tmp_path, run.checkpoint, bare, run.model, run.chat, run.device))
