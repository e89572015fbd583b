"""The speech LLM: a speech encoder, an adapter, and a text LLM that reads audio frames among its token embeddings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtbi.batches.batch import Batch
from mtbi.errors import UserError
from mtbi.llm import attention, back_end, fp8
from mtbi.llm.last_layer import LastLayer, decoder_layers
from mtbi.llm.zero3_loading import loaded_weights_only
from mtbi.model import by_length
from mtbi.model.adapter import build_adapter
from mtbi.model.encoders.build import build_encoder, check_lora, set_trainable
from mtbi.model.losses.imitation import AnswerHead, LossOutput
from mtbi.recipe import LoraConfig, LossConfig, ModelConfig

#: Given where a mask is expected, so that transformers builds none: packed rows make their own.
NO_MASK_SHAPE = (1, 1, 1, 1)


class SpeechLLM(nn.Module):
    """Encoder, adapter and LLM, always run in this order on every rank, whatever the batch holds (ZeRO-3 needs that)."""

    def __init__(self, encoder: nn.Module, adapter: nn.Module, llm: Any, loss: LossConfig, tasks: int = 1) -> None:
        """`encoder` and `llm` come with `requires_grad` as they shall train; `tasks` is the length of the plan's task list."""
        super().__init__()
        self.encoder, self.adapter = encoder, adapter
        self.llm: Any = llm
        self.head = AnswerHead(llm.get_output_embeddings(), loss, tasks, llm.config.get_text_config())
        self.last_layer = LastLayer(llm)
        self.dtype = next(adapter.parameters()).dtype
        self.encoder_trains = any(parameter.requires_grad for parameter in encoder.parameters())
        self.llm_trains = any(parameter.requires_grad for parameter in llm.parameters())

    def forward(self, batch: Batch) -> LossOutput:
        """Sums of the loss over the batch's targets, not normalised."""
        if batch.features.numel():  # the same on all ranks: shards hold either sound or features
            frames, _ = self.adapter(batch.features.to(self.dtype), batch.feature_lengths)
        else:
            frames, _ = self.hear(batch.waveforms, batch.waveform_lengths)
        embeddings = self.embed(batch.token_ids)
        # Out of place and also with no slot at all: the adapter is in every rank's backward pass.
        heard = frames[batch.audio_clip, batch.audio_frame].to(embeddings.dtype)
        flat = embeddings.flatten(0, 1).index_put((batch.audio_slot,), heard)
        # Where there is no target, one position is read: every rank runs every module.
        read = batch.target_slot if batch.target_slot.numel() else batch.target_slot.new_zeros(1)
        hidden = self.llm.get_decoder()(
            inputs_embeds=flat.view_as(embeddings),
            attention_mask=flat.new_zeros(NO_MASK_SHAPE),
            position_ids=batch.position_ids,
            use_cache=False,
            packing=attention.Packing(batch.group, batch.branch, batch.position_ids, read),
        ).last_hidden_state
        return self.head(hidden.flatten(0, 1)[batch.target_slot], batch)

    def hear(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` and lengths in samples to frames `(clips, n, llm_hidden)` and lengths in LLM positions."""
        lengths = lengths.clamp(min=1)
        if self.encoder_trains:  # all ranks must call it equally often
            features, frames = self.encoder(waveforms, lengths)
        else:
            with torch.no_grad():
                features, frames = by_length.encode(self.encoder, waveforms, lengths)
        return self.adapter(features.to(self.dtype), frames)

    def hear_one(self, wave: np.ndarray) -> Tensor:
        """The frames `(n, llm_hidden)` of a waveform `(samples,)` at 16 kHz."""
        clip = torch.from_numpy(np.ascontiguousarray(wave))[None].to(next(self.adapter.parameters()).device)
        frames, counts = self.hear(clip, torch.tensor([len(wave)], device=clip.device))
        return frames[0, : int(counts[0])]

    def embed(self, token_ids: Tensor) -> Tensor:
        """The LLM's embeddings of token ids."""
        return self.llm.get_input_embeddings()(token_ids)

    def train(self, mode: bool = True) -> SpeechLLM:
        """Frozen parts stay in evaluation mode (transformers recomputes activations in training mode only)."""
        super().train(mode)
        self.encoder.train(mode and self.encoder_trains)
        self.llm.train(mode and (self.llm_trains or self.llm.is_gradient_checkpointing))
        return self

    def bfloat16(self) -> SpeechLLM:
        """Cast parameters only: DeepSpeed calls this, and rotary frequencies and mel filters must stay in float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.bfloat16()
        self.dtype = torch.bfloat16
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """By name: the only parameters in the optimizer and in checkpoints."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def build_speech_llm(
    config: ModelConfig,
    loss: LossConfig,
    dtype: torch.dtype,
    device: torch.device,
    tasks: int = 1,
    zero3: dict[str, Any] | None = None,
    longest_tokens: int | None = None,
) -> SpeechLLM:
    """Pretrained encoder and LLM, and a fresh adapter (from torch's random state).

    With `zero3`, DeepSpeed's configuration, the LLM is read straight into its ZeRO-3 partitions; all else comes whole.
    `longest_tokens` is the longest dialogue in LLM positions, None = any length (`mtbi.llm.back_end.choose`).
    Raises UserError for models that cannot be found or are of an unsupported kind.
    """
    device = torch.device(device)
    llm = load_llm(config, dtype, device, zero3, longest_tokens)
    encoder: Any = build_encoder(config.encoder, dtype, device, config.trust_remote_code)
    set_trainable(encoder, config.encoder)
    check_lora(encoder, config.encoder, config.encoder_lora)
    add_lora(encoder, config.encoder_lora, "model.encoder_lora")
    rms, width = embedding_rms(llm)
    adapter = build_adapter(config.adapter, encoder.width, width, rms).to(device, dtype)
    return SpeechLLM(encoder, adapter, llm, loss, tasks)


def load_llm(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    zero3: dict[str, Any] | None = None,
    longest_tokens: int | None = None,
) -> Any:
    """The causal LLM, frozen but for LoRA, with one of our attention back ends; partitioned with `zero3`."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    from mtbi.llm.chat_format import resolve_llm

    if config.llm_fp8:
        fp8.check(device)
    attention.register()
    path = str(resolve_llm(config.llm))
    chosen, _ = back_end.decide(config, device, dtype, longest_tokens)
    partitioning: Any = None
    if zero3:
        from transformers.integrations import HfDeepSpeedConfig

        partitioning = HfDeepSpeedConfig(zero3)  # transformers and peft look for it while it lives
    try:
        with loaded_weights_only() if partitioning else nullcontext():
            llm: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, attn_implementation=back_end.NAMES[chosen], trust_remote_code=config.trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise UserError(f"model.llm: cannot load {config.llm!r}: {error}") from error
    back_end.check_model(llm)
    llm.requires_grad_(False)
    add_lora(llm, config.llm_lora, "model.llm_lora")
    if config.llm_fp8:
        fp8.convert(llm, device)
    if config.activation_checkpointing == "on":  # what `auto` means is decided before training, in engine/memory.py
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    if config.compile:
        compile_layers(llm)
    # All that is kept of what came with the weights: no penalty, no temperature.
    ends = getattr(llm.generation_config, "eos_token_id", None)
    llm.generation_config = GenerationConfig(eos_token_id=ends)
    return llm if partitioning else llm.to(device)


def compile_layers(llm: Any) -> None:
    """Compile an LLM's layers in place, when they are first called: one by one, since they are alike and so compiled once.

    The last one computes less than the others and stays as it is (`mtbi.llm.last_layer`).
    """
    for layer in decoder_layers(llm)[:-1]:
        layer.compile()


def add_lora(model: nn.Module, config: LoraConfig, field: str) -> None:
    """Put trainable low-rank updates (arXiv 2106.09685) into the named linear layers, in place."""
    if not config.rank:
        return
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    others = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    alpha: Any = config.alpha  # peft's annotation says int; any number works
    settings = PeftConfig(r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=config.targets)
    try:
        inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise UserError(f"{field}.targets: {error}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name or name.replace(".base_layer", "") in others


def is_partitioned(model: nn.Module) -> bool:
    """Whether ZeRO-3 has split the parameters over the ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def embedding_rms(llm: Any) -> tuple[float, int]:
    """Root mean square and width of the LLM's embeddings, over up to 10,000 tokens of the vocabulary."""
    table = llm.get_input_embeddings()
    gathered: AbstractContextManager = nullcontext()
    if is_partitioned(llm):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([table.weight])
    with gathered, torch.no_grad():
        ids = torch.arange(0, table.num_embeddings, 1 + table.num_embeddings // 10_000, device=table.weight.device)
        embeddings = table(ids).float()
    return float(embeddings.square().mean().sqrt()), embeddings.shape[-1]
