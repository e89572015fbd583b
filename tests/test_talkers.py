"""Instructions about several talkers in the miniature: from single utterances, by scenes and an evaluation, to a score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mtbi import recipe as recipes
from mtbi.answers import task_library
from mtbi.benchmark.run import Settings, evaluate
from mtbi.cli import main
from mtbi.corpus.manifest import Utterance, read_manifest, relocate, write_manifest
from mtbi.llm.chat_format import ChatFormat, read_chat
from mtbi.shards.open_shards import open_shards
from mtbi.shards.read import Shards
from mtbi.use.open_run import TrainedRun

RECIPE = ["--recipe", "demo", "behaviour.library=[talkers]", "behaviour.answers=gold", "behaviour.tasks=[]"]
SEPARATOR = ["--separator", "next"]  #: a word that the miniature LLM knows


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, list[Utterance]]) -> Path:
    """Six scenes of espeak-ng's strings, with answers and shards."""
    folder = tmp_path_factory.mktemp("talkers")
    spoken = [replace(one, speaker=f"s{number % 3}", words=None) for number, one in enumerate(corpus[1])]
    write_manifest(folder / "single.jsonl", [relocate(one, corpus[0], folder) for one in spoken])
    out = folder / "scenes"
    mixing = ["--scenes", "6", "--speakers", "2", "3", "--turns", "4", "--longest", "20", *SEPARATOR]
    assert main(["data", "mix", str(folder / "single.jsonl"), str(out), *mixing]) == 0
    assert main(["behave", str(out / "manifest.jsonl"), str(out / "behaviour"), *RECIPE]) == 0
    assert main(["data", "shard", *(str(out / name) for name in ("manifest.jsonl", "behaviour", "shards")), *RECIPE]) == 0
    return out


@pytest.fixture
def shards(scenes: Path, chat: ChatFormat) -> Shards:
    """The shards of the scenes."""
    return open_shards(str(scenes / "shards"), recipes.load("demo"), chat)


def test_shards_hold_the_filled_prompts_and_the_answers_of_the_mix(scenes: Path, shards: Shards) -> None:
    tasks = task_library.load(["talkers"])
    manifest = {utterance.id: utterance for utterance in read_manifest(scenes / "manifest.jsonl")}
    assert len(shards) == len(manifest) == 6
    named = 0
    for sample in map(shards.__getitem__, range(len(shards))):
        utterance = manifest[sample.id]
        assert {one.task: one.answer for one in sample.behaviours} == utterance.answers
        assert len(utterance.answers) >= 7
        for one in sample.behaviours:
            wording = tasks[one.task].wordings[one.wording]
            assert "{" not in one.prompt
            for name in ("keyword", "separator", "talker_number"):
                if f"{{{name}}}" in wording:
                    named += 1
                    assert one.prompt == wording.replace(f"{{{name}}}", utterance.extra[name])
    assert named >= 18


def test_a_plan_trains_on_them(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["demo", f"data.shards=[{scenes / 'shards'}]", "data.eval_shards=[]", "interleave.share=0", "loss.gold_ce=1"]
    assert main(["plan", *plan, "plan.row_tokens=2048", "plan.max_audio_seconds=20", "train.alignment_steps=0"]) == 0
    assert "utterances      6 of 6" in capsys.readouterr().out


def test_the_answers_of_a_run_are_scored_by_talker(
    scenes: Path, untrained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = replace(untrained_run.recipe.data, shards=[str(scenes / "shards")])
    run = replace(untrained_run, folder=tmp_path, recipe=replace(untrained_run.recipe, data=data))
    settings = Settings(places={"scenes": str(scenes / "shards")}, dialogues=0, controls=(), prompt_first=False)
    answers = evaluate(run, settings).folder / "answers.jsonl"

    def rates(*options: str) -> dict[str, float]:
        assert main(["data", "convert", str(answers), str(tmp_path / "hyp.json"), *SEPARATOR, *options]) == 0
        capsys.readouterr()
        assert main(["score", str(tmp_path / "hyp.json"), str(scenes / "ref.json"), "--json"]) == 0
        total = json.loads(capsys.readouterr().out)["total"]
        return {name: total[name]["rate"] for name in ("cpWER", "ORC-WER")}

    stored = "--source", "text LLM"  # the right answers, as the shards hold them
    assert rates("--task", "all_talkers", *stored) == {"cpWER": 0, "ORC-WER": 0}
    assert rates("--task", "all_turns", "--one-stream", *stored)["ORC-WER"] == 0
    assert rates("--task", "first_talker", *stored)["cpWER"] > 0.1  # the words of the others are missing
    assert rates("--task", "all_talkers")["cpWER"] > 0.3  # an untrained adapter hears nothing


def test_the_separator_may_be_a_token_of_its_own(scenes: Path) -> None:
    chat = read_chat(recipes.load("demo", ["model.new_tokens=[<sc>]"]))
    [new] = chat.tokenizer.convert_tokens_to_ids(["<sc>"])
    for utterance in read_manifest(scenes / "manifest.jsonl"):
        answer = utterance.answers["all_talkers"].replace("next", "<sc>")
        ids = chat.answer_ids(answer)
        assert ids.count(new) == answer.count("<sc>") == int(utterance.answers["talker_count"]) - 1
        assert " ".join(chat.decode(ids).split()) == answer
