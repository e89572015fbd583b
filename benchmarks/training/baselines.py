"""How such models are usually trained: one task a sequence, padded to the longest of the batch, by the Hugging Face Trainer.

`Padded` is in the style of SLAM-LLM (arXiv 2402.08846) and BLSP (arXiv 2309.00916): cross-entropy on the answer, logits at
every position. `OnlineTeacher` is in the style of Ultravox: the text LLM reads the transcript in every step, and the speech LLM
learns its full distribution over answer tokens. Both use this package's encoder, adapter and weights, so that only the method
differs; the encoder hears clips padded to the longest of the batch, not to Whisper's 30 seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from mtbi.model.adapter import frame_mask
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import SpeechLLM
from mtbi.shards.read import Shards

IGNORED = -100


class Dialogues(Dataset):
    """One dialogue about one utterance an item, sound decoded each time; each worker opens the shards for itself."""

    def __init__(self, places: list[str], utterances: int, tasks_per_utterance: int) -> None:
        self.places, self.utterances, self.tasks = places, utterances, tasks_per_utterance

    def __len__(self) -> int:
        return self.utterances * self.tasks

    @cached_property
    def shards(self) -> Shards:
        """The sound and the answers."""
        return Shards(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        utterance, place = divmod(number, self.tasks)
        sample = self.shards[utterance]
        asked = sample.behaviours[place]
        words = [int(i) for ids in sample.word_ids for i in ids]
        return {"wave": sample.waveform, "words": words, "prompt": asked.after_speech_ids, "answer": asked.answer_ids}


def pad(sequences: list[list[int]], value: int) -> Tensor:
    """`(sequences, longest)`, padded on the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(one) for one in sequences], batch_first=True, padding_value=value)


class Collator:
    """Dialogues to padded tensors; with `transcripts`, also the sequences that a text LLM reads."""

    def __init__(self, geometry: FrameGeometry, prefix: list[int], transcripts: bool) -> None:
        self.geometry, self.prefix, self.transcripts = geometry, prefix, transcripts

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        frames = [int(self.geometry.frames(len(item["wave"]))) for item in items]
        waves = [torch.from_numpy(item["wave"]) for item in items]
        batch = self.sequences([[0] * count for count in frames], items, "")
        spans = [[0] * len(self.prefix) + [1] * count for count in frames]
        is_audio = pad(spans, 0)
        batch["is_audio"] = functional.pad(is_audio, (0, batch["input_ids"].shape[1] - is_audio.shape[1])).bool()
        batch["waveforms"] = nn.utils.rnn.pad_sequence(waves, batch_first=True)
        batch["lengths"] = torch.tensor([len(wave) for wave in waves])
        return batch | (self.sequences([item["words"] for item in items], items, "text_") if self.transcripts else {})

    def sequences(self, middles: list[list[int]], items: list[dict[str, Any]], name: str) -> dict[str, Tensor]:
        """Ids, mask and labels of prefix, middle, prompt and answer."""
        asked = [[*self.prefix, *middle, *item["prompt"]] for middle, item in zip(middles, items, strict=True)]
        whole = [[*before, *item["answer"]] for before, item in zip(asked, items, strict=True)]
        labels = [[IGNORED] * len(before) + item["answer"] for before, item in zip(asked, items, strict=True)]
        return {
            f"{name}input_ids": pad(whole, 0),
            f"{name}attention_mask": pad([[1] * len(one) for one in whole], 0),
            f"{name}labels": pad(labels, IGNORED),
        }


class Padded(nn.Module):
    """Cross-entropy of the answer, by the LLM's own loss."""

    def __init__(self, model: SpeechLLM) -> None:
        super().__init__()
        self.model = model
        self.answer_tokens, self.slots, self.real = 0, 0, 0

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """Token embeddings with adapter frames where the speech is."""
        with torch.no_grad():
            features, counts = self.model.encoder(batch["waveforms"], batch["lengths"])
        frames, lengths = self.model.adapter(features, counts)
        embeddings = self.model.embed(batch["input_ids"])
        heard = frames[frame_mask(lengths, frames.shape[1])].to(embeddings.dtype)
        return embeddings.masked_scatter(batch["is_audio"][..., None], heard)

    def count(self, batch: dict[str, Tensor]) -> None:
        """Keep account of work and padding."""
        self.answer_tokens += int((batch["labels"] != IGNORED).sum())
        self.slots += batch["input_ids"].numel()
        self.real += int(batch["attention_mask"].sum())

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The mean loss."""
        self.count(batch)
        out = self.model.llm(
            inputs_embeds=self.embed(batch), attention_mask=batch["attention_mask"], labels=batch["labels"], use_cache=False
        )
        return {"loss": out.loss}


class OnlineTeacher(Padded):
    """Divergence from the distribution of the text LLM, which reads the transcript in the same step."""

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The mean loss."""
        self.count(batch)
        with torch.no_grad():
            teacher = self.model.llm(
                input_ids=batch["text_input_ids"], attention_mask=batch["text_attention_mask"], use_cache=False
            ).logits
        student = self.model.llm(
            inputs_embeds=self.embed(batch), attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        asked, told = ((batch[name][:, 1:] != IGNORED) for name in ("labels", "text_labels"))
        loss = functional.kl_div(
            student[:, :-1][asked].log_softmax(-1), teacher[:, :-1][told].softmax(-1), reduction="batchmean"
        )
        return {"loss": loss}


class EachStep(TrainerCallback):
    """Tells after each optimizer step how many answer tokens it learnt."""

    def __init__(self, model: Padded, done: Callable[[int], None]) -> None:
        self.model, self.done, self.before = model, done, 0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.done(self.model.answer_tokens - self.before)
        self.before = self.model.answer_tokens


def train(
    model: Padded, dialogues: Dialogues, collate: Collator, batch: int, accumulate: int, out: Path, done: Callable[[int], None]
) -> None:
    """Train without end; `done` ends the process."""
    zero = {
        "zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto", "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    settings = TrainingArguments(
        str(out), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, max_steps=1_000_000,
        learning_rate=1e-4, dataloader_num_workers=2, remove_unused_columns=False, save_strategy="no", report_to=[],
        logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), deepspeed=zero, label_names=["labels"],
    )  # fmt: skip
    trainer = Trainer(model, settings, data_collator=collate, train_dataset=dialogues, callbacks=[EachStep(model, done)])
    trainer.train()
