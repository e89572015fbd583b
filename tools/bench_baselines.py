"""Training steps without this package's packed rows, attention and losses: the baselines of `tools/bench_gpu.py`.

Encoder, adapter and LLM are the same modules. Each row holds one dialogue and is padded. The LLM is called as transformers
calls it, with its logits for all positions. Hugging Face's Trainer adds nothing to the computation of such a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mtbi.batches.batch import Batch
from mtbi.model.speech_llm import SpeechLLMModule

IGNORED = -100  #: the label of a position that predicts nothing


def adamw_step(model: SpeechLLMModule, loss_of: Callable[[Batch], Tensor]) -> Callable[[Batch], None]:
    """A training step in plain PyTorch, with the mean loss that `loss_of` gives for a batch."""
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), 1e-4)

    def step(batch: Batch) -> None:
        loss_of(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_transformers(model: SpeechLLMModule) -> Callable[[Batch], None]:
    """A step of supervised fine-tuning: the cross-entropy of the answers, as the LLM's class computes it."""

    def loss_of(batch: Batch) -> Tensor:
        exists = (batch.group >= 0).long()
        return model.llm(inputs_embeds=heard(model, batch), attention_mask=exists, labels=labels_of(batch)).loss

    return adamw_step(model, loss_of)


def online_divergence(model: SpeechLLMModule) -> Callable[[Batch], None]:
    """A step that runs the text LLM beside the speech LLM and compares their whole distributions at the answers' tokens.

    In the place of the sound the text LLM reads as many tokens, so its rows are as long.
    """

    def loss_of(batch: Batch) -> Tensor:
        exists, where = (batch.group >= 0).long(), batch.target_slot
        with torch.no_grad():
            taught = model.llm(input_ids=batch.token_ids, attention_mask=exists).logits.flatten(0, 1)[where]
        said = model.llm(inputs_embeds=heard(model, batch), attention_mask=exists).logits.flatten(0, 1)[where]
        logarithms = [functional.log_softmax(logits.float(), dim=-1) for logits in (said, taught)]
        return functional.kl_div(*logarithms, reduction="batchmean", log_target=True)

    return adamw_step(model, loss_of)


def heard(model: SpeechLLMModule, batch: Batch) -> Tensor:
    """The LLM's inputs `(rows, tokens, hidden)`: embeddings of the text, and adapter frames at the slots of the sound."""
    frames, lengths = model.encoder(batch.waveforms, batch.waveform_lengths)
    spoken, _ = model.adapter(frames, lengths)
    embedded = model.llm.get_input_embeddings()(batch.token_ids)
    values = spoken[batch.audio_clip, batch.audio_frame].to(embedded.dtype)
    return embedded.flatten(0, 1).index_put((batch.audio_slot,), values).view_as(embedded)


def labels_of(batch: Batch) -> Tensor:
    """`(rows, tokens)` the token at each position that is an answer's. Transformers shifts labels by one position itself.

    The last token of an answer has no position of its own, so each row loses one target.
    """
    labels = torch.full_like(batch.token_ids, IGNORED).flatten()
    after = (batch.target_slot + 1).clamp(max=len(labels) - 1)
    inside = batch.token_ids.flatten()[after] == batch.target_ids
    labels[after[inside]] = batch.target_ids[inside]
    return labels.view_as(batch.token_ids)
