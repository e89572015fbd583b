"""The data and models of the training benchmark: a corpus of read-speech lengths, answers, and models of random weights.

Speed depends on shapes, not on content. The shapes keep the proportions of Whisper large-v3 and Llama 3.1 8B: the encoder is a
tenth of the LLM, the output layer a twelfth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from planning.run import librispeech_seconds
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

from mtbi import recipe as recipes
from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import Answer
from mtbi.audio import codec
from mtbi.corpus.manifest import Utterance
from mtbi.llm.chat_format import load_llm_tokenizer, read_chat
from mtbi.llm.decode import Prompts, Stop
from mtbi.model.encoders.build import build_encoder, encoder_facts
from mtbi.recipe import Recipe
from mtbi.shards import features
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards

VOCABULARY = 4096
LLM = {
    "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
ENCODER = {
    "d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024, "num_mel_bins": 128,
    "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
DIALOGUES = 8  # stored about each utterance
TOP_K = 32
FIELDS = [
    "precision=fp32", "behaviour.library=[content]", f"behaviour.per_utterance={DIALOGUES}", f"behaviour.top_k={TOP_K}",
    "model.adapter.stack=4", "interleave.share=0", "plan.row_tokens=2048", "plan.rows_per_step=2",
    "plan.rows_per_micro_batch=1", "plan.window_utterances=4096", "plan.passes_per_epoch=0", "loss.chunk=1024",
]  # fmt: skip


class DrawnAnswers:
    """A teacher whose answers are random tokens, log-normal in number (median 22)."""

    def __init__(self, end_id: int) -> None:
        self.end_id, self.rng = end_id, np.random.default_rng(2)

    def answer(self, prompts: Iterable[Prompts], stop: Stop | None = None) -> Iterator[tuple[tuple[int, int], Answer]]:
        """Random answers, in the place of `Teacher.answer`."""
        for number, group in enumerate(prompts):
            for index, limit in enumerate(group.limits):
                yield (number, index), self.draw(int(np.clip(self.rng.lognormal(3.1, 0.6), 2, limit)))

    def draw(self, length: int) -> Answer:
        """A random answer of `length` tokens."""
        ids = np.sort(self.rng.integers(10, VOCABULARY, (length, TOP_K)), 1)
        ids[:, 0], ids[-1, 0] = self.rng.integers(10, VOCABULARY, length), self.end_id
        shares = np.sort(self.rng.dirichlet(np.full(TOP_K + 1, 0.2), length)[:, :TOP_K], 1)[:, ::-1]
        return Answer(ids[:, 0].tolist(), False, ids.astype(np.int32), np.log(shares + 1e-6).astype(np.float16))


def make_models(folder: Path) -> None:
    """An LLM with the demo's tokenizer and a Whisper encoder, both small and random."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**LLM, max_position_embeddings=4096)).save_pretrained(folder / "llm")
    load_llm_tokenizer("demo").save_pretrained(folder / "llm")
    WhisperModel(WhisperConfig(**ENCODER)).save_pretrained(folder / "encoder")


def encode(recipe: Recipe, folder: Path) -> Recipe:
    """Store the encoder's output, as `mtbi data encode` does; returns the recipe that trains on it."""
    encoder = build_encoder(recipe.model.encoder, torch.float32, torch.device("cpu")).eval()
    features.write(
        Shards(recipe.data.shards), encoder, encoder_facts(recipe.model.encoder).output_name, str(folder / "features")
    )
    return replace(recipe, data=replace(recipe.data, shards=[str(folder / "features")]))


def make(folder: Path, utterances: int) -> Recipe:
    """Models and shards in a folder; returns the recipe that trains on them."""
    make_models(folder)
    recipe = recipes.load("demo", [f"model.llm={folder / 'llm'}", f"model.encoder.path={folder / 'encoder'}", *FIELDS])
    rng, chat, corpus = np.random.default_rng(1), read_chat(recipe), []
    for number, seconds in enumerate(librispeech_seconds(rng, utterances)):
        wave = 0.01 * rng.standard_normal(int(seconds * codec.SAMPLE_RATE)).astype(np.float32)
        (folder / f"{number:05d}.flac").write_bytes(codec.encode(wave))
        words = ["three"] * max(1, int(2.7 * seconds))
        times = np.linspace(0, seconds, len(words) + 1).round(3).tolist()
        corpus.append(
            Utterance(
                id=f"{number:05d}",
                audio=f"{number:05d}.flac",
                text=" ".join(words),
                duration_s=round(float(seconds), 4),
                words=[(word, start, end) for word, start, end in zip(words, times, times[1:], strict=False)],
            )
        )
    ask_unanswered(corpus, recipe.behaviour, DrawnAnswers(chat.end_id), chat, folder / "behaviour")
    answers = AnswerStore(folder / "behaviour")
    write_shards(corpus, folder, answers, chat, str(folder / "shards"), shard_bytes=1 << 23)
    return replace(recipe, run_dir=str(folder / "run"), data=replace(recipe.data, shards=[str(folder / "shards")]))
