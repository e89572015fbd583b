from __future__ import annotations

import numpy as np
import pytest
import torch

from mtbi import recipe
from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.audio.codec import encode
from mtbi.corpus.manifest import Utterance
from mtbi.demo import world
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import BehaviourConfig
from mtbi.shards.write import write_shards
from mtbi.use.open_run import TrainedRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run with an untrained adapter and two shard folders of noise that claims to be digits."""
    folder = tmp_path_factory.mktemp("run")
    chat, rng = ChatFormat(load_llm_tokenizer("demo")), np.random.default_rng(0)
    for part, tasks in (("train", ["repeat", "count"]), ("test", ["repeat", "count", "twice", "repeat/french"])):
        utterances = []
        for number, text in enumerate(["three five", "one two nine", "seven seven four zero"]):
            path = folder / part / f"{number}.flac"
            path.parent.mkdir(exist_ok=True)
            samples = 8000 * (number + 1)
            path.write_bytes(encode(0.1 * rng.standard_normal(samples).astype(np.float32)))
            gold = {task: world.gold_answer(task, text) for task in tasks}
            utterances.append(Utterance(f"{part}-{number}", path.name, text, "s", samples / 16000, answers=gold))
        config = BehaviourConfig(tasks=tasks, wordings="all", top_k=4, max_new_tokens=24)
        teacher, answers = build_teacher(recipe.load("demo").model, config), folder / part / "behaviour"
        ask_unanswered(utterances, config, teacher, chat, answers, seed=1)
        store = AnswerStore(answers)
        write_shards(utterances, folder / part, store, chat, str(folder / part / "shards"))
    chosen = recipe.load(
        "demo", [f"run_dir={folder}", "data.shards=['{run_dir}/train/shards']", "data.eval_shards=['{run_dir}/test/shards']"]
    )
    torch.manual_seed(0)
    model = build_speech_llm(chosen.model, chosen.loss, torch.float32, torch.device("cpu"), tasks=1)
    return TrainedRun(folder, folder / "step-00000007", chosen, model.eval(), chat, torch.device("cpu"))
