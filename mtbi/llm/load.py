"""Loading of the text LLM: which of it trains, LoRA, 8-bit floats, activation checkpointing and compiled layers as asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mtbi.errors import UserError
from mtbi.llm import attention, back_end, fp8, trained_layers
from mtbi.llm.chat_format import resolve_llm
from mtbi.llm.last_layer import decoder_layers
from mtbi.llm.zero3_loading import loaded_weights_only
from mtbi.recipe import LoraConfig, ModelConfig

TABLE_ROWS = 8192  # of the LLM's embeddings that are converted to another precision at once


def load_llm(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    zero3: dict[str, Any] | None = None,
    longest_tokens: int | None = None,
) -> Any:
    """The causal LLM, frozen except for chosen layers and LoRA, with one of our attention back ends.

    It is read straight to a GPU: the processes of a node share the file's pages in memory, and none has a copy of its own. An
    LLM of 8-bit floats is read to the host, because it may not fit into the GPU's memory before it is converted. With `zero3`,
    DeepSpeed's configuration, it is read straight into its partitions. `longest_tokens` is the longest dialogue
    in LLM positions, None = any length. Raises UserError for an LLM that cannot be found or computed in packed rows.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    if config.llm_fp8:
        fp8.check(device)
    attention.register()
    path = str(resolve_llm(config.llm))
    chosen, _ = back_end.decide(config, device, dtype, longest_tokens)
    partitioning: Any = None
    if zero3:
        from transformers.integrations import HfDeepSpeedConfig

        partitioning = HfDeepSpeedConfig(zero3)  # transformers and peft use it for as long as this object exists
    straight = device if device.type == "cuda" and not partitioning and not config.llm_fp8 else None
    try:
        with loaded_weights_only() if partitioning else nullcontext():
            llm: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=back_end.NAMES[chosen],
                trust_remote_code=config.trust_remote_code,
                device_map=straight,
            )
    except (OSError, ValueError) as error:
        raise UserError(f"model.llm: cannot load {config.llm!r}: {error}") from error
    back_end.check_model(llm)
    trained_layers.set_trainable(llm, config.llm_trainable)
    add_lora(llm, config.llm_lora, "model.llm_lora")
    if config.llm_fp8:
        fp8.convert(llm, device)
    if config.activation_checkpointing == "on":  # `auto` is decided before training, in engine/memory.py
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    if config.compile:
        compile_layers(llm)
    # Of the generation settings that come with the weights only the end tokens are kept: no penalty, no temperature.
    ends = getattr(llm.generation_config, "eos_token_id", None)
    llm.generation_config = GenerationConfig(eos_token_id=ends)
    return llm if partitioning else llm.to(device)


def compile_layers(llm: Any) -> None:
    """Compile an LLM's layers in place, when they are first called. All are alike, so the code is compiled only once.

    The last layer computes less than the others and is not compiled (`mtbi.llm.last_layer`).
    """
    for layer in decoder_layers(llm)[:-1]:
        layer.compile()


def add_lora(model: nn.Module, config: LoraConfig, field: str) -> None:
    """Add trainable low-rank updates (arXiv 2106.09685) to the named linear layers, in place.

    `field` is the recipe's section, for messages. Raises UserError for targets that the model lacks.
    """
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


def gathered(parameter: Any) -> AbstractContextManager:
    """A context in which a parameter is whole, on every process, if ZeRO-3 has split it."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


@torch.no_grad()
def mean_embedding(embed: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """The mean of an LLM's embeddings of some token ids, `(llm_hidden,)` float64. `embed` gives the embeddings of ids."""
    return torch.stack([embed(part).double().sum(0) for part in ids.split(TABLE_ROWS)]).sum(0) / len(ids)


def embedding_rms(llm: Any) -> tuple[float, int]:
    """Root mean square and width of the LLM's embeddings, over up to 10,000 tokens of the vocabulary."""
    table = llm.get_input_embeddings()
    with gathered(table.weight), torch.no_grad():
        ids = torch.arange(0, table.num_embeddings, 1 + table.num_embeddings // 10_000, device=table.weight.device)
        embeddings = table(ids).float()
    return float(embeddings.square().mean().sqrt()), embeddings.shape[-1]
