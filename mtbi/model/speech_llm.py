"""The speech LLM: a speech encoder, an adapter, and a text LLM whose input mixes adapter frames and token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtbi.batches.batch import Batch
from mtbi.batches.compact import without
from mtbi.llm.last_layer import LastLayer, decoder_of
from mtbi.llm.load import add_lora, embedding_rms, load_llm
from mtbi.llm.packing import Columns, Packing
from mtbi.model import by_length
from mtbi.model.adapter import Adapter, build_adapter
from mtbi.model.encoders.build import build_encoder, check_lora, set_trainable
from mtbi.model.encoders.protocol import taps_of
from mtbi.model.frame_classes import SilenceFilter, classes_of
from mtbi.model.losses.alignment import AlignmentLoss
from mtbi.model.losses.head import LossOutput, build_head
from mtbi.model.new_rows import add_new_rows
from mtbi.recipe import LossConfig, ModelConfig, Recipe

#: Shape of the mask passed to transformers so that it builds none of its own. Packed rows have their own masks.
NO_MASK_SHAPE = (1, 1, 1, 1)


class SpeechLLMModule(nn.Module):
    """Encoder, adapter and LLM. Every rank runs all three in this order, whatever its batch holds: ZeRO-3 needs that."""

    def __init__(self, encoder: nn.Module, adapter: Adapter, llm: Any, loss: LossConfig, tasks: int = 1) -> None:
        """`requires_grad` of `encoder` and `llm` is already set. `tasks` is the length of the plan's task list."""
        super().__init__()
        self.encoder, self.adapter = encoder, adapter
        self.llm: Any = llm
        self.head = build_head(llm.get_output_embeddings(), loss, tasks, llm.config.get_text_config())
        self.alignment: AlignmentLoss | None = None  #: on the adapter's output, where a training has it
        self.filter: SilenceFilter | None = None  #: of the adapter frames that the LLM reads; None = it reads all
        self.last_layer = LastLayer(llm)
        self.dtype = next(adapter.parameters()).dtype
        self.encoder_trains = any(parameter.requires_grad for parameter in encoder.parameters())
        self.llm_trains = any(parameter.requires_grad for parameter in llm.parameters())

    def forward(self, batch: Batch, alignment_alone: bool = False) -> LossOutput:
        """Sums of the loss over the batch's targets, not normalised.

        With `alignment_alone` it is the alignment loss in its place, and the LLM computes next to nothing.
        """
        frames, counts = self.encode_clips(
            batch.waveforms,
            batch.waveform_lengths,
            batch.features,
            batch.feature_lengths,
            batch.masked_frames,
            batch.masked_channels,
            batch.on_host.waveform_lengths.tolist() if batch.on_host else None,
        )
        aligned = self.alignment(frames, counts, batch, self.embed) if self.alignment else None
        out = self.imitate(frames, batch.clips_alone() if alignment_alone else batch)
        if aligned is not None:
            out = aligned.added_to(out, alignment_alone)
        return out._replace(means=out.means | self.layer_weights()) if self.training else out

    def layer_weights(self) -> dict[str, Tensor]:
        """The weight of each encoder layer in the last call, as `LossOutput.means` has it; none for a single layer."""
        weights: dict[str, Tensor] = self.adapter.mix.weights if self.adapter.mix else {}
        return {name: torch.stack([weight, torch.ones_like(weight)]) for name, weight in weights.items()}

    def imitate(self, frames: Tensor, batch: Batch) -> LossOutput:
        """The loss of the answers, given the adapter frames `(clips, frames, hidden)` of the batch's clips."""
        means = {}
        if self.filter:
            silent = self.filter.silent(frames[batch.audio_clip, batch.audio_frame])
            means["silence"] = torch.stack([silent.sum().float(), silent.new_tensor(len(silent), dtype=torch.float32)])
            batch = without(batch, silent)
        embeddings = self.embed(batch.token_ids)
        # Out of place, and also without any audio slot, so that the adapter is in every rank's backward pass.
        audio = frames[batch.audio_clip, batch.audio_frame].to(embeddings.dtype)
        flat = embeddings.flatten(0, 1).index_put((batch.audio_slot,), audio)
        # Without a target one position is read, so that every rank runs every module.
        read = batch.target_slot if batch.target_slot.numel() else batch.target_slot.new_zeros(1)
        hidden = decoder_of(self.llm)(
            inputs_embeds=flat.view_as(embeddings),
            attention_mask=flat.new_zeros(NO_MASK_SHAPE),
            position_ids=batch.position_ids,
            use_cache=False,
            packing=Packing(*columns(batch), read, columns(batch.on_host) if batch.on_host else None),
        ).last_hidden_state
        out = self.head(hidden.flatten(0, 1)[batch.target_slot], batch)
        return LossOutput(out.loss, out.means | means)

    def encode_clips(
        self,
        waveforms: Tensor,
        waveform_lengths: Tensor,
        features: Tensor,
        feature_lengths: Tensor,
        masked_frames: Tensor,
        masked_channels: Tensor,
        samples: list[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Adapter frames and their numbers, of a batch's clips: stored features where it has some, else waveforms.

        What the masks hide is hidden from the adapter (`mtbi.model.masking`). `samples` are the `waveform_lengths`, where the
        host knows them.
        """
        if features.numel():  # the same on all ranks: shards hold either audio or features
            features, lengths = features.to(self.dtype), feature_lengths
        else:
            features, lengths = self.speech_features(waveforms, waveform_lengths, samples)
        return self.adapter(features, lengths, masked_frames, masked_channels)

    def encode_speech(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Adapter frames `(clips, frames, hidden)` and their numbers (clips,), from `(clips, samples)` at 16 kHz and lengths
        (clips,) in samples.
        """
        return self.adapter(*self.speech_features(waveforms, lengths))

    def speech_features(self, waveforms: Tensor, lengths: Tensor, samples: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """The encoder's output `(clips, frames, width)` and lengths (clips,) in frames, of clips as in `encode_speech`."""
        lengths = lengths.clamp(min=1)
        if self.encoder_trains:  # all ranks must call it equally often
            features, frames = self.encoder(waveforms, lengths)
        else:
            with torch.no_grad():
                features, frames = by_length.encode(self.encoder, waveforms, lengths, samples)
        return features.to(self.dtype), frames

    def encode_waveform(self, wave: np.ndarray) -> Tensor:
        """All adapter frames `(frames, hidden)` of a waveform `(samples,)` at 16 kHz."""
        clip = torch.from_numpy(np.ascontiguousarray(wave))[None].to(next(self.adapter.parameters()).device)
        frames, counts = self.encode_speech(clip, torch.tensor([len(wave)], device=clip.device))
        return frames[0, : int(counts[0])]

    def heard(self, frames: Tensor) -> Tensor:
        """Those of the adapter frames `(frames, hidden)` that the LLM reads."""
        return frames[~self.filter.silent(frames)] if self.filter else frames

    def embed(self, token_ids: Tensor) -> Tensor:
        """The LLM's embeddings of token ids, new tokens included."""
        return self.llm.get_input_embeddings()(token_ids)

    def train(self, mode: bool = True) -> SpeechLLMModule:
        """Frozen parts stay in evaluation mode, but for an LLM that recomputes activations: transformers needs that."""
        super().train(mode)
        self.encoder.train(mode and self.encoder_trains)
        self.llm.train(mode and (self.llm_trains or self.llm.is_gradient_checkpointing))
        return self

    def bfloat16(self) -> SpeechLLMModule:
        """Cast parameters, but no buffers: rotary frequencies and mel filters must stay in float32. DeepSpeed calls this."""
        for parameter in self.parameters():
            parameter.data = parameter.data.bfloat16()
        self.dtype = torch.bfloat16
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters in the optimizer and in checkpoints, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def columns(batch: Batch) -> Columns:
    """What says where a batch's groups and branches lie."""
    return batch.group, batch.branch, batch.position_ids


def build_speech_llm(
    config: ModelConfig,
    loss: LossConfig,
    dtype: torch.dtype,
    device: torch.device,
    tasks: int = 1,
    zero3: dict[str, Any] | None = None,
    longest_tokens: int | None = None,
) -> SpeechLLMModule:
    """Pretrained encoder and LLM, and a fresh adapter (from torch's random state).

    With `zero3`, DeepSpeed's configuration, the LLM is read straight into its ZeRO-3 partitions; the other parts are whole.
    `longest_tokens` is the longest dialogue in LLM positions, None = any length (`mtbi.llm.back_end.choose`).
    Raises UserError for models that cannot be found or are not supported.
    """
    device = torch.device(device)
    llm = load_llm(config, dtype, device, zero3, longest_tokens)
    add_new_rows(llm, config)
    encoder: Any = build_encoder(config.encoder, dtype, device, config.trust_remote_code)
    set_trainable(encoder, config.encoder)
    check_lora(encoder, config.encoder, config.encoder_lora)
    add_lora(encoder, config.encoder_lora, "model.encoder_lora")
    rms, width = embedding_rms(llm)
    adapter = build_adapter(config.adapter, encoder.width, width, rms, taps_of(encoder)).to(device, dtype)
    return SpeechLLMModule(encoder, adapter, llm, loss, tasks)


def add_frame_classes(model: SpeechLLMModule, recipe: Recipe, silence: Sequence[int], training: bool) -> None:
    """Give the model the alignment loss (only for training) and the filter of silent frames, where the recipe has them.

    `silence` are the token ids of what an adapter frame without a token says (`train.start_silence`). Every process must call
    this before ZeRO-3 partitions the adapter.
    """
    aligns = training and bool(recipe.loss.alignment or recipe.train.alignment_steps)
    least = recipe.model.adapter.drop_silence
    if not (aligns or least):
        return
    classes = classes_of(model.llm, silence, recipe.loss.alignment_tokens)
    if aligns:
        model.alignment = AlignmentLoss(recipe.loss, classes)
    if least:
        model.filter = SilenceFilter(classes, least)
