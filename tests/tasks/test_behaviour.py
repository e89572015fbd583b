from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.data.corpus import Utterance, write_manifest
from mtbi.demo import world
from mtbi.errors import UserError
from mtbi.recipe import BehaviourConfig, ModelConfig
from mtbi.tasks import behaviour
from mtbi.tasks.chat import ChatFormat, load_llm_tokenizer
from mtbi.tasks.teacher import TransformersTeacher, build_teacher

CONFIG = BehaviourConfig(library=["digits"], per_utterance=3, batch_size=16, max_new_tokens=24, top_k=8)


def make_utterances(count: int) -> list[Utterance]:
    rng = random.Random(0)
    texts = [" ".join(world.DIGITS[d] for d in world.random_digits(rng)) for _ in range(count)]
    return [
        Utterance(f"u{n}", "x.wav", text, answers={"count": world.gold_answer("count", text)}) for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_llm_tokenizer("demo"))


@pytest.fixture(scope="module")
def teacher() -> TransformersTeacher:
    made = build_teacher(ModelConfig(), CONFIG)
    assert isinstance(made, TransformersTeacher)
    return made


def test_answers_and_teacher_are_the_llms_own(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    utterances = make_utterances(20)
    assert behaviour.generate(utterances, CONFIG, teacher, chat, tmp_path) == 60
    store = behaviour.BehaviourStore(tmp_path)
    right = 0
    for utterance in utterances:
        found = store.get(utterance.id)
        assert len(found) == len({one.task for one in found}) == 3
        for one in found:
            prompt = [*chat.prefix_ids, *chat.transcript_ids(utterance.text), *one.prompt_ids]
            with torch.no_grad():
                logits = teacher.llm(torch.tensor([[*prompt, *one.answer_ids]])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)
            assert expected.argmax(-1).tolist() == one.answer_ids  # greedy
            stored = torch.from_numpy(one.topk_logprobs.astype(np.float32))
            torch.testing.assert_close(stored, expected.gather(1, torch.from_numpy(one.topk_ids).long()), rtol=2e-3, atol=2e-3)
            assert one.answer_ids[-1] == chat.end_id
            assert not one.truncated
            assert not one.heldout
            right += one.answer == world.gold_answer(one.task, utterance.text)
            assert one.gold == utterance.answers.get(one.task)
    assert right >= 57


def test_cut_off_answers_are_tagged_and_have_no_end_token(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    config = dataclasses.replace(CONFIG, tasks=["twice"], max_new_tokens=3)
    behaviour.generate(make_utterances(4), config, teacher, chat, tmp_path)
    (one,) = behaviour.BehaviourStore(tmp_path).get("u0")
    assert one.truncated
    assert len(one.answer_ids) == len(one.topk_ids) == 3
    assert chat.end_id not in one.answer_ids


def test_answers_do_not_depend_on_the_batch(chat: ChatFormat, teacher: TransformersTeacher) -> None:
    prompts = [chat.dialogue_ids(u.text, "say every digit twice") for u in make_utterances(12)]
    together = teacher.answer(prompts, 24)
    alone = [teacher.answer([prompt], 24)[0] for prompt in prompts]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]


def test_nothing_is_asked_twice(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    behaviour.generate(make_utterances(10), CONFIG, teacher, chat, tmp_path)
    assert behaviour.generate(make_utterances(10), CONFIG, teacher, chat, tmp_path) == 0
    assert behaviour.generate(make_utterances(12), CONFIG, teacher, chat, tmp_path) == 6
    assert len(behaviour.BehaviourStore(tmp_path).get("u11")) == 3


def test_other_settings_need_another_folder(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    behaviour.generate(make_utterances(1), CONFIG, teacher, chat, tmp_path)
    with pytest.raises(UserError, match="other settings"):
        behaviour.generate(make_utterances(1), dataclasses.replace(CONFIG, top_k=4), teacher, chat, tmp_path)
    with pytest.raises(UserError, match="no answers there"):
        behaviour.BehaviourStore(tmp_path / "nowhere")


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.jsonl", make_utterances(700))
    out = tmp_path / "answers"
    command = [sys.executable, "-m", "mtbi.cli", "behave", str(tmp_path / "manifest.jsonl"), str(out)]
    command += ["behaviour.batch_size=32", "behaviour.per_utterance=4"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("chunk-*.jsonl"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("chunk-*")}
    assert 3 <= len(list(out.glob("chunk-*.jsonl"))) < 22
    subprocess.run(command, check=True, capture_output=True)
    asked = [(r["utterance"], r["task"]) for path in out.glob("chunk-*.jsonl") for r in behaviour.read_lines(path)]
    assert len(asked) == len(set(asked)) == 2800
    whole = {path.name for path in out.glob("chunk-*.jsonl")} & before.keys()
    assert all((out / name).stat().st_mtime_ns == before[name] for name in whole)


def test_vllm_that_is_not_installed_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"mtbi\[vllm\]"):
        build_teacher(ModelConfig(), dataclasses.replace(CONFIG, backend="vllm"))
