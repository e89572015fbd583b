from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mtbi import recipe
from mtbi.answers import task_library
from mtbi.benchmark import run as benchmark
from mtbi.benchmark.answers import CONTROL_EVERY, CONTROLS, SPARE_TOKENS, ConditionAsker
from mtbi.benchmark.dialogues import UNKNOWN_ANSWER_TOKENS, choose_utterances, from_shards, with_prompt_moved
from mtbi.benchmark.run import Settings, evaluate, load_cells
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.metrics import CASCADE, SPEECH, TEXT_LLM
from mtbi.model.recogniser import Transcriber
from mtbi.use.open_run import TrainedRun


def hears_three_five(name: str, device: torch.device) -> Transcriber:
    """A recogniser that hears the same in every recording."""
    return lambda waveforms: ["three five" for _ in waveforms]


def test_the_whole_way(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "open_recogniser", hears_three_five)
    report = evaluate(run, Settings(dialogues=0, batch_size=4, recogniser="three five"))
    after = [d for d in report.dialogues if not d.prompt_first]
    assert {(d.utterance, d.task) for d in after} == {
        (f"test-{number}", task) for number in range(3) for task in ("repeat", "count", "twice", "repeat/french")
    }
    before = [d for d in report.dialogues if d.prompt_first]
    assert {d.utterance for d in before} == {"test-0", "test-2"}  # every second one, by length
    assert all(d.answers[TEXT_LLM] for d in before)  # the text LLM inside the speech LLM answers them
    assert all("/" not in d.task for d in before)
    by_name = {(cell.tasks, cell.wording, cell.prompt): cell for cell in report.cells}
    trained = by_name["trained tasks", "all", "after"]
    assert trained.number("text_llm") == 1.0  # the shipped text LLM reads these strings without a mistake
    assert trained.dialogues == 6
    assert trained.number("cascade") == pytest.approx(
        1 / 3
    )  # the recogniser is right about one utterance of three, and never counts four
    assert (trained.number("accuracy") or 0) < 0.5
    assert (trained.number("divergence") or 0) > 0.5  # an untrained adapter is far from the text LLM
    assert by_name["new tasks", "all", "after"].dialogues == 3
    assert by_name["trained tasks, other format", "all", "after"].dialogues == 3
    some = [d for d in report.dialogues if CONTROLS[0] in d.answers]
    assert len(some) == pytest.approx(len(report.dialogues) / CONTROL_EVERY, abs=1)
    assert all({*CONTROLS, SPEECH, CASCADE} <= set(d.answers) for d in some)
    assert load_cells(report.folder) == report.cells
    assert len((report.folder / "answers.jsonl").read_text().splitlines()) == len(report.dialogues)
    assert (report.folder / "table.md").read_text().count("\n") == len(report.cells) + 2


def test_batching_does_not_change_answers(run: TrainedRun) -> None:
    shards = benchmark.open_shards(run.recipe.data.eval_shards[0], run)

    def answers(size: int) -> list[dict[str, str]]:
        turns = list(from_shards("test", shards, task_library.load(["digits"]), 0))
        for index, turn in enumerate(turns):
            turn.controlled = index % CONTROL_EVERY == 0
        for start in range(0, len(turns), size):
            ConditionAsker(run).ask(turns[start : start + size])
        return [turn.dialogue.answers for turn in turns]

    assert answers(1) == answers(12)


def test_how_long_an_answer_may_be_does_not_depend_on_its_batch(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_on(_model: object, _prompts: list, limits: list[int], _end_id: int) -> list[list[int]]:
        return [run.chat.plain_ids("one") * limit for limit in limits]

    monkeypatch.setattr("mtbi.benchmark.answers.generate", run_on)
    shards = benchmark.open_shards(run.recipe.data.eval_shards[0], run)
    turns = list(from_shards("test", shards, task_library.load(["digits"]), 0))
    turns[1].dialogue.max_new_tokens = 18
    moved = with_prompt_moved(turns[0])
    ConditionAsker(run, controls=()).ask([*turns, moved])
    for turn in turns:
        spoken, known = (len(run.chat.plain_ids(turn.dialogue.answers[who])) for who in (SPEECH, TEXT_LLM))
        assert spoken == min(turn.dialogue.max_new_tokens, 2 * known + SPARE_TOKENS)
        assert turn.dialogue.cut_off == [SPEECH]
    assert len({len(turn.dialogue.answers[SPEECH]) for turn in turns}) > 1
    assert moved.dialogue.answers[TEXT_LLM].count("one") == UNKNOWN_ANSWER_TOKENS
    assert moved.dialogue.cut_off == [TEXT_LLM, SPEECH]


def test_a_prompt_first_run_is_asked_prompt_first(run: TrainedRun, tmp_path: Path) -> None:
    behaviour = dataclasses.replace(run.recipe.behaviour, prompt_first=True)
    first = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, behaviour=behaviour))
    soundfile.write(tmp_path / "a.wav", np.full(1600, 0.1), 16_000)
    (tmp_path / "items.jsonl").write_text('{"audio": "a.wav", "instruction": "repeat it"}\n')
    for asked, expected in ((first, True), (run, False)):
        [turn] = benchmark.list_turns("items", str(tmp_path / "items.jsonl"), asked, {}, Settings()).turns
        assert turn.dialogue.prompt_first is expected
        assert with_prompt_moved(turn).dialogue.prompt_first is not expected  # the other place


def test_a_part_of_the_dialogues_is_drawn_and_sorted_by_length(run: TrainedRun) -> None:
    opened = benchmark.open_shards(run.recipe.data.eval_shards[0], run)
    chosen = choose_utterances(opened, 7)
    assert len(chosen) == 2
    samples = opened.index.utterances["samples"][chosen]
    assert list(samples) == sorted(samples)


def test_items_of_a_jsonl_file_are_asked_and_answered_by_the_text_llm_too(run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "audios").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "audios" / "a.wav", noise, 16_000)
    items = [
        {"id": 7, "audio_filepath": "a.wav", "textual_audio": "one two nine", "instruction": "repeat it", "metric": "wer",
         "label": "ONE TWO NINE", "dataset": "asr"},
        {"audio": "a.wav", "textual_audio": "one two nine", "instruction": "reverse the digits"},
    ]  # fmt: skip
    path = tmp_path / "public.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    report = evaluate(dataclasses.replace(run, folder=tmp_path), Settings({"public": str(path)}))
    first, second = report.dialogues
    assert (first.utterance, first.task, first.answers[TEXT_LLM]) == ("7", "asr", "one two nine")
    assert (second.task, second.answers[TEXT_LLM], second.gold) == ("public", "nine two one", None)
    cells = {cell.tasks: cell for cell in report.cells}
    assert "wer" in cells["asr"].values
    assert "accuracy" not in cells["public"].values

    path.write_text('{"audio": "a.wav"}\n')
    with pytest.raises(UserError, match="line 1: an item is a JSON object with `audio` and `instruction`"):
        evaluate(run, Settings({"public": str(path)}))
    path.write_text('{"audio": "b.wav", "instruction": "?"}\n')
    with pytest.raises(UserError, match=r"no recording 'b\.wav'"):
        evaluate(run, Settings({"public": str(path)}))


def test_shards_of_another_llm_are_refused(run: TrainedRun) -> None:
    other = dataclasses.replace(run, chat=ChatFormat(run.chat.tokenizer, "be brief"))
    with pytest.raises(UserError, match="another LLM, chat template or system prompt"):
        evaluate(other, Settings())


def test_no_shards(run: TrainedRun) -> None:
    with pytest.raises(UserError, match="no evaluation shards"):
        evaluate(dataclasses.replace(run, recipe=recipe.load("demo", ["data.eval_shards=[]"])), Settings())


def test_group_names() -> None:
    assert benchmark.group_name("runs/demo/data/test_known/shards") == "test_known"
    assert benchmark.group_name("s3://bucket/dev/") == "dev"
    assert benchmark.group_name("/data/eval/closed.jsonl") == "closed"
