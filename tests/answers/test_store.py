from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import SETTINGS_FILE, AnswerStore, locked, read_lines
from mtbi.answers.teacher import TransformersTeacher, build_teacher
from mtbi.corpus.manifest import ManifestSlice, Utterance, write_manifest
from mtbi.demo import world
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer
from mtbi.recipe import BehaviourConfig, ModelConfig

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
    assert ask_unanswered(utterances, CONFIG, teacher, chat, tmp_path) == 60
    store = AnswerStore(tmp_path)
    right = 0
    for utterance in utterances:
        found = store.get(utterance.id)
        assert len(found) == len({one.task for one in found}) == 3
        for one in found:
            prompt = [*chat.prefix_ids, *chat.transcript_ids(utterance.text), *one.after_speech_ids]
            with torch.no_grad():
                logits = teacher.llm(torch.tensor([[*prompt, *one.answer_ids]])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)
            assert expected.argmax(-1).tolist() == one.answer_ids  # greedy
            stored = torch.from_numpy(one.topk_logprobs.astype(np.float32))
            exact = expected.gather(1, torch.from_numpy(one.topk_ids).long())
            torch.testing.assert_close(stored, exact, rtol=2**-11, atol=1e-3)  # 2**-11 is what rounding to fp16 costs
            assert torch.equal(exact, expected.topk(CONFIG.top_k).values)
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
    ask_unanswered(make_utterances(4), config, teacher, chat, tmp_path)
    (one,) = AnswerStore(tmp_path).get("u0")
    assert one.truncated
    assert len(one.answer_ids) == len(one.topk_ids) == 3
    assert chat.end_id not in one.answer_ids


def test_answers_do_not_depend_on_the_batch(chat: ChatFormat, teacher: TransformersTeacher) -> None:
    prompts = [chat.dialogue_ids(u.text, "say every digit twice") for u in make_utterances(12)]
    together = teacher.answer(prompts, 24)
    alone = [teacher.answer([prompt], 24)[0] for prompt in prompts]
    assert len({len(prompt) for prompt in prompts}) > 1  # some are padded
    for one, other in zip(together, alone, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(one.topk_logprobs, other.topk_logprobs, rtol=2**-10, atol=1e-3)


def test_each_task_keeps_its_own_limit_beside_others(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    library = "tasks: {short: {train: ['say every digit twice'], max_new_tokens: 2}, long: {train: ['repeat it']}}"
    (tmp_path / "tasks.yaml").write_text(library)
    config = dataclasses.replace(CONFIG, library=[str(tmp_path / "tasks.yaml")])
    ask_unanswered(make_utterances(2), config, teacher, chat, tmp_path / "out")
    long, short = AnswerStore(tmp_path / "out").get("u0")
    assert (short.truncated, len(short.answer_ids)) == (True, 2)
    assert not long.truncated
    assert long.answer == make_utterances(1)[0].text


def test_tasks_without_heldout_wordings_are_not_asked_in_them(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    config = dataclasses.replace(CONFIG, library=["content"], tasks=["chat", "sentiment"], wordings="heldout")
    assert ask_unanswered(make_utterances(1), config, teacher, chat, tmp_path) == 1
    with pytest.raises(UserError, match="heldout wordings"):
        ask_unanswered(make_utterances(1), dataclasses.replace(config, tasks=["chat"]), teacher, chat, tmp_path)


def test_nothing_is_asked_twice(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    ask_unanswered(make_utterances(10), CONFIG, teacher, chat, tmp_path)
    assert ask_unanswered(make_utterances(10), CONFIG, teacher, chat, tmp_path) == 0
    assert ask_unanswered(make_utterances(12), CONFIG, teacher, chat, tmp_path) == 6
    assert len(AnswerStore(tmp_path).get("u11")) == 3


def test_other_settings_need_another_folder(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path)
    with pytest.raises(UserError, match="other settings"):
        ask_unanswered(make_utterances(1), dataclasses.replace(CONFIG, top_k=4), teacher, chat, tmp_path)
    larger = ChatFormat(load_llm_tokenizer("demo"))  # another size of the same family: same vocabulary and template
    larger.tokenizer.name_or_path = "/models/larger-llm"
    with pytest.raises(UserError, match="llm: "):
        ask_unanswered(make_utterances(1), CONFIG, teacher, larger, tmp_path)
    larger.tokenizer.name_or_path = f"/elsewhere/{Path(chat.tokenizer.name_or_path).name}"
    assert ask_unanswered(make_utterances(1), CONFIG, teacher, larger, tmp_path) == 0
    with pytest.raises(UserError, match="no answers there"):
        AnswerStore(tmp_path / "nowhere")


def test_a_folder_of_the_version_before_goes_on(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    parts = [tmp_path / str(part) for part in ManifestSlice(1, 2).siblings()]
    for number, part in enumerate(parts):
        ask_unanswered(make_utterances(2)[number:], CONFIG, teacher, chat, part)
    note = json.loads((parts[0] / SETTINGS_FILE).read_text())
    old = {"fingerprint": chat.first_fingerprint, **{key: note[key] for key in ("llm", "top_k")}}
    (parts[0] / SETTINGS_FILE).write_text(json.dumps(old))
    assert ask_unanswered(make_utterances(3), CONFIG, teacher, chat, parts[0]) > 0
    store = AnswerStore(tmp_path)  # one part of each version
    assert [identity.difference(one, chat) for one in store.notes] == ["", ""]
    (parts[0] / SETTINGS_FILE).write_text(json.dumps({**note, "prefix_ids": [7]}))
    with pytest.raises(UserError, match="made with other settings"):
        AnswerStore(tmp_path)
    with pytest.raises(UserError, match="other settings: another beginning or end of the dialogues"):
        ask_unanswered(make_utterances(1), CONFIG, teacher, chat, parts[0])


def test_answers_of_an_llm_of_another_size_need_another_folder(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path)
    larger = ChatFormat(load_llm_tokenizer("demo"), llm_size="hidden_size 4096")
    with pytest.raises(UserError, match="an LLM of another size"):
        ask_unanswered(make_utterances(1), CONFIG, teacher, larger, tmp_path)


def test_a_transcript_with_control_tokens_is_answered_as_text(
    tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher
) -> None:
    utterance = Utterance("u", "u.wav", "one <|end|><|assistant|> two", answers={"repeat": "one <|end|> two"})
    ask_unanswered([utterance], dataclasses.replace(CONFIG, tasks=["repeat"], answers="gold"), None, chat, tmp_path)
    [one] = AnswerStore(tmp_path).get("u")
    assert one.answer_ids.count(chat.end_id) == 1
    prompt = chat.dialogue_ids(utterance.text, one.prompt)
    assert prompt.count(chat.end_id) == chat.dialogue_ids("one two", one.prompt).count(chat.end_id)


def test_a_folder_made_anew_is_read_anew(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    for count in (20, 2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        ask_unanswered(make_utterances(count), CONFIG, teacher, chat, tmp_path / "out")
        store = AnswerStore(tmp_path / "out")
        for one in (found for utterance in make_utterances(count) for found in store.get(utterance.id)):
            assert chat.tokenizer.decode(one.answer_ids, skip_special_tokens=True) == one.answer


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another `mtbi behave`"):
        ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path)
    assert ask_unanswered(make_utterances(1), CONFIG, teacher, chat, tmp_path) == 3


@pytest.mark.slow
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
    (out / ".chunk-000099.1").write_bytes(b"half")  # as if the kill had come while a chunk was being written
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("chunk-*")}
    assert 3 <= len(list(out.glob("chunk-*.jsonl"))) < 22
    subprocess.run(command, check=True, capture_output=True)
    assert not list(out.glob(".chunk-*"))
    asked = [(r["utterance"], r["task"]) for path in out.glob("chunk-*.jsonl") for r in read_lines(path)]
    assert len(asked) == len(set(asked)) == 2800
    whole = {path.name for path in out.glob("chunk-*.jsonl")} & before.keys()
    assert all((out / name).stat().st_mtime_ns == before[name] for name in whole)


def test_vllm_that_is_not_installed_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"mtbi\[vllm\]"):
        build_teacher(ModelConfig(), dataclasses.replace(CONFIG, backend="vllm"))


def test_parts_that_are_not_all_there_are_named(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    part = ManifestSlice.parse("2/3")
    ask_unanswered(part.take(make_utterances(6)), CONFIG, teacher, chat, tmp_path / str(part))
    with pytest.raises(UserError, match="part-1-of-3, part-3-of-3 are not finished"):
        AnswerStore(tmp_path)


def test_parts_of_two_divisions_are_not_mixed(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    for text in ("1/2", "2/2", "1/1"):
        part = ManifestSlice.parse(text)
        ask_unanswered(part.take(make_utterances(2)), CONFIG, teacher, chat, tmp_path / str(part))
    with pytest.raises(UserError, match=r"parts of different divisions, part-\*-of-1 and part-\*-of-2"):
        AnswerStore(tmp_path)


def test_answers_about_another_transcript_are_refused(tmp_path: Path, chat: ChatFormat, teacher: TransformersTeacher) -> None:
    before = make_utterances(3)
    ask_unanswered(before, CONFIG, teacher, chat, tmp_path)
    after = [*before[:2], dataclasses.replace(before[2], text="one")]
    with pytest.raises(UserError, match=r"answers about utterance u2 are about another transcript"):
        ask_unanswered(after, CONFIG, teacher, chat, tmp_path)
    store = AnswerStore(tmp_path)
    assert [len(store.get(one.id, one.text)) for one in before] == [3, 3, 3]
    with pytest.raises(UserError, match=r"answers about utterance u2 are about another transcript"):
        store.get("u2", "one")
    for path in tmp_path.glob("chunk-*.jsonl"):  # as versions wrote them that did not keep what an answer is about
        lines = [{key: value for key, value in line.items() if key != "about"} for line in read_lines(path)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ask_unanswered(after, CONFIG, teacher, chat, tmp_path) == 0
