"""The pipeline of exports: the same answers in batches as alone, and every way to hand over a question."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

import mtbi.hf
from mtbi.audio import codec

PROMPTS = ("say the digits backwards", "count the digits", "repeat", "what is the last digit of all that you have heard")


@pytest.fixture(scope="module")
def ask(merged: Path) -> Any:
    return pipeline("audio-text-to-text", model=str(merged), max_new_tokens=8)


def texts(answers: list[dict[str, str]]) -> list[str]:
    return [answer["generated_text"] for answer in answers]


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_give_the_answers_of_questions_alone(ask: Any, waves: list[np.ndarray], batch_size: int) -> None:
    first = {"audio": waves[0], "text": PROMPTS[0]}
    questions: list[Any] = [{"audio": wave, "text": text} for wave, text in zip(waves, PROMPTS, strict=True)]
    questions += [first, {**first, "text": PROMPTS[3]}]  # one recording and two prompts
    questions += [{"text": "three five count the digits"}, {"audio": waves[1:3], "text": PROMPTS[1]}]
    questions.append([{"role": "user", "content": [{"type": "audio", "audio": waves[3]}, {"type": "text", "text": "repeat"}]}])
    alone = texts([ask(question) for question in questions])
    assert len(set(alone)) > 4
    assert texts(ask(questions, batch_size=batch_size)) == alone
    assert texts(list(ask((question for question in questions), batch_size=batch_size))) == alone
    assert texts(ask(questions[-3:-2] * 3, batch_size=batch_size)) == alone[-3:-2] * 3  # no recording in the whole batch


def test_arguments_given_when_it_is_made_or_called_reach_generate(merged: Path, waves: list[np.ndarray]) -> None:
    question = {"audio": waves[1], "text": PROMPTS[0]}
    plain = pipeline("audio-text-to-text", model=str(merged))
    short = pipeline("audio-text-to-text", model=str(merged), max_new_tokens=2)
    assert short(question) == plain(question, max_new_tokens=2) == plain(question, generate_kwargs={"max_new_tokens": 2})
    assert short(question) != plain(question, max_new_tokens=8)
    several = plain([question, question], max_new_tokens=3, num_beams=2, num_return_sequences=2, batch_size=2)
    assert [[set(answer) for answer in answers] for answers in several] == [[{"generated_text"}] * 2] * 2
    with pytest.raises(ValueError, match="no_such_argument"):
        plain(question, no_such_argument=1)


def test_recordings_come_in_every_form(ask: Any, waves: list[np.ndarray]) -> None:
    wave = waves[1]
    expected = ask({"audio": wave, "text": PROMPTS[0]})
    forms = [{"array": wave, "sampling_rate": 16000}, (16000, wave), torch.from_numpy(wave), np.stack([wave, wave], 1)]
    for form in forms:
        assert ask({"audio": form, "text": PROMPTS[0]}) == expected
    file = codec.encode(wave)
    decoded = ask({"audio": codec.read(file), "text": PROMPTS[0]})
    assert ask({"audio": io.BytesIO(file), "text": PROMPTS[0]}) == decoded


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"audio": np.zeros(9, "float32")}, "without 'text'"),
        ({"audio_url": "a.wav", "text": "repeat"}, r"keys \['audio_url', 'text'\]"),
        ("a.wav", "the type str"),
        ({"messages": []}, "one of these is not, or is empty"),
        ({"messages": [{"role": "user", "content": "repeat"}], "text": "repeat"}, "'messages' and more"),
        ({"audio": np.zeros(0, "float32"), "text": "repeat"}, "no samples"),
        ({"audio": np.full(16000, np.nan), "text": "repeat"}, "16000 of 16000 samples are NaN"),
    ],
)
def test_what_is_no_question_is_refused(ask: Any, question: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(question)


def test_a_saved_pipeline_opens_again(ask: Any, waves: list[np.ndarray], tmp_path: Path) -> None:
    ask.save_pretrained(tmp_path, max_shard_size="1MB")
    question = {"audio": waves[0], "text": PROMPTS[0]}
    assert pipeline("audio-text-to-text", model=str(tmp_path))(question, max_new_tokens=8) == ask(question)


def test_several_answers_need_one_recording_in_each_prompt(merged: Path, waves: list[np.ndarray]) -> None:
    """As many recordings as prompts are not enough: two in one and none in the other."""
    model, processor = AutoModelForCausalLM.from_pretrained(merged), AutoProcessor.from_pretrained(merged)
    inputs = processor(text=["<|audio|> one <|audio|>", "two"], audio=waves[:2])
    with pytest.raises(ValueError, match="exactly one recording in each"):
        model.generate(**inputs, num_beams=2, max_new_tokens=2)


def test_audio_tokens_without_recordings_are_refused(merged: Path, waves: list[np.ndarray]) -> None:
    model, processor = AutoModelForCausalLM.from_pretrained(merged), AutoProcessor.from_pretrained(merged)
    assert isinstance(processor, mtbi.hf.MtbiProcessor)
    inputs = processor(text="<|audio|> one", audio=waves[0])
    with pytest.raises(ValueError, match="audio tokens without input_values"):
        model(input_ids=inputs["input_ids"], input_values=inputs["input_values"])
