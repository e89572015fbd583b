"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from launcher.ranks import find_ranks
from mtbi import recipe as recipes
from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.audio import codec
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.demo import world
from mtbi.demo.speech import EspeakVoices, join
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards.write import write_shards
from mtbi.use.open_run import TrainedRun


@pytest.fixture(autouse=True, scope="module")
def no_ranks_left() -> Iterator[None]:
    """Fails a module that leaves the variables of `find_ranks` set: trainings that later tests start would inherit them."""
    variables: dict[str, str] = {}
    find_ranks(variables)
    before = set(os.environ)
    yield
    left = [name for name in variables if name in os.environ and name not in before]
    for name in left:
        del os.environ[name]
    assert not left, f"the tests of this module left {', '.join(left)} set"


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of small public recordings (`MTBI_SPEECH`, or `shared/speech` beside the repository)."""
    folder = Path(os.environ.get("MTBI_SPEECH") or Path(__file__).parents[2] / "shared" / "speech")
    if not (folder / "fsdd" / "manifest.jsonl").is_file():
        message = f"the recordings are not at {folder}: set MTBI_SPEECH to the folder that holds fsdd/, ljspeech_samples/, …"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def chat() -> ChatFormat:
    """The chat format of the miniature text LLM."""
    return ChatFormat(load_llm_tokenizer("demo"))


@pytest.fixture(scope="session")
def untrained_run(chat: ChatFormat) -> TrainedRun:
    """The miniature speech LLM with an untrained adapter: it answers text, and cannot use speech yet."""
    chosen = recipes.load("demo", ["plan.max_audio_seconds=5"])
    torch.manual_seed(0)
    model = build_speech_llm(chosen.model, chosen.loss, torch.float32, torch.device("cpu"), tasks=1)
    return TrainedRun(Path("run"), Path("none"), chosen, model.eval(), chat, torch.device("cpu"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Utterance]]:
    """60 strings spoken by espeak-ng: a folder and its utterances. The last utterance has no word times."""
    folder = tmp_path_factory.mktemp("corpus")
    espeak, rng, pauses = EspeakVoices(), random.Random(0), np.random.default_rng(0)
    digits = [codec.standardise(espeak.speak(word, "en+m3", 180, 50)[:, None], espeak.sample_rate) for word in world.DIGITS]
    utterances = []
    for number in range(60):
        string = world.random_digits(rng)
        wave, times = join([digits[d] for d in string], pauses)
        (folder / f"{number}.flac").write_bytes(codec.encode(wave))
        text = " ".join(world.DIGITS[d] for d in string)
        words = [(word, start, end) for word, (start, end) in zip(text.split(), times, strict=True)]
        utterances.append(Utterance(f"u{number:02d}", f"{number}.flac", text, words=words if number < 59 else None))
    return folder, utterances


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, list[Utterance]], chat: ChatFormat) -> Path:
    """A folder of the text LLM's answers about the corpus: five tasks for each utterance."""
    out = tmp_path_factory.mktemp("answers")
    config = BehaviourConfig(library=["digits"], per_utterance=5, top_k=4, max_new_tokens=24)
    ask_unanswered(corpus[1], config, build_teacher(recipes.load("demo").model, config), chat, out)
    return out


@pytest.fixture(scope="session")
def shard_folder(
    tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat
) -> Path:
    """The corpus and its answers as shards, a few utterances in each."""
    out = tmp_path_factory.mktemp("shards") / "digits"
    write_shards(corpus[1], corpus[0], AnswerStore(answers), chat, str(out), shard_bytes=1 << 19)
    return out


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory, chat: ChatFormat) -> Path:
    """Shards of eight transcripts without sound, by way of a manifest."""
    folder = tmp_path_factory.mktemp("text")
    texts = ["one two three", "nine eight", "four", "seven zero one", "five six", "two two", "eight zero", "three one four"]
    write_manifest(folder / "manifest.jsonl", [Utterance(f"t{number}", "", text) for number, text in enumerate(texts)])
    utterances = read_manifest(folder / "manifest.jsonl")
    config = BehaviourConfig(library=["digits"], per_utterance=3, top_k=4, max_new_tokens=24)
    ask_unanswered(utterances, config, build_teacher(recipes.load("demo").model, config), chat, folder / "answers")
    store = AnswerStore(folder / "answers")
    assert write_shards(utterances, folder, store, chat, str(folder / "shards"), shard_bytes=1 << 13) == len(texts)
    return folder / "shards"


@pytest.fixture(scope="session")
def surrounded_folder(tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, list[Utterance]], chat: ChatFormat) -> Path:
    """Shards of 16 utterances with text around the sound, and more text around the transcript. The last has no word times."""
    folder = tmp_path_factory.mktemp("surrounded")
    chosen = [*corpus[1][:15], corpus[1][-1]]
    utterances = [replace(one, extra={"lead": "one two", "tail": "nine"[: 4 * (n % 2)]}) for n, one in enumerate(chosen)]
    config = BehaviourConfig(library=["digits"], per_utterance=3, top_k=4, max_new_tokens=24, reads="{lead} zero {text} {tail}")
    ask_unanswered(utterances, config, build_teacher(recipes.load("demo").model, config), chat, folder / "answers")
    store = AnswerStore(folder / "answers")
    write_shards(utterances, corpus[0], store, chat, str(folder / "shards"), shard_bytes=1 << 16, hears="{lead} {sound} {tail}")
    return folder / "shards"


@pytest.fixture
def small_recipe() -> Recipe:
    """Rows of 256 tokens, three to a step, windows of about 20 utterances."""
    overrides = ["plan.row_tokens=256", "plan.rows_per_step=3", "plan.window_utterances=20", "plan.tasks_per_utterance=3"]
    return recipes.load("demo", overrides)
