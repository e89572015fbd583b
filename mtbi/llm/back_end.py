"""Which LLMs can be trained in packed rows, and which attention back end computes them.

Both follow from the LLM's configuration, before its weights are read. `mtbi.model.self_test` then checks the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtbi.errors import UserError
from mtbi.llm import kernels
from mtbi.llm.attention import DENSE, FLASH, FLEX
from mtbi.llm.last_layer import decoder_layers, decoder_of
from mtbi.recipe import ModelConfig

NAMES = {"dense": DENSE, "flash": FLASH, "flex": FLEX}  #: of the recipe's `model.attention`, in transformers
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
#: Where configurations list what each layer is.
LAYER_LISTS = ("layer_types", "layers_block_type", "block_types", "_block_types")
NO_INTERFACE = "does not use transformers' attention interface, which packed rows need"
LARGEST_FLASH_HEAD = 256
FLASH_HEAD_MULTIPLE = 8


@dataclass(frozen=True)
class LLMShape:
    """An LLM's attention, from its configuration."""

    name: str
    heads: int
    key_heads: int
    size: int  #: numbers in a query or key head
    value_size: int  #: numbers in a value head
    window: int | None  #: shortest sliding window of any layer, in tokens; None where none is used
    chunk: int | None  #: tokens of a chunk that layers attend inside of (Llama 4)
    positions: int | None  #: positions that the LLM was made for
    same_rotation: int | None  #: longest input that leaves rotary positions as they are; None = any
    others: tuple[str, ...]  #: kinds of layers that are no attention, or another one than `ATTENTION_LAYERS`
    capped: bool  #: scores are capped (softcap)
    token_bound: bool  #: each layer looks the tokens up again (Gemma 3n)

    @classmethod
    def of(cls, config: Any) -> LLMShape:
        """From a configuration of transformers. For a multi-modal model the text model counts."""
        config = config.get_text_config()

        def value(*names: str) -> Any:
            return next((given for name in names if (given := _largest(config, name)) is not None), None)

        heads = value("num_attention_heads", "n_head") or 1
        size = value("head_dim") or (value("hidden_size", "n_embd") or heads) // heads
        latent = value("qk_nope_head_dim") is not None and value("v_head_dim") is not None  # DeepSeek 2 and 3
        if latent:
            size = value("qk_nope_head_dim") + value("qk_rope_head_dim")
        kinds = {str(kind) for name in LAYER_LISTS for kind in getattr(config, name, None) or ()}
        slides = getattr(config, "use_sliding_window", True) and ("sliding_attention" in kinds or not kinds)
        rotation = value("rope_scaling", "rope_parameters") or {}
        changing = rotation.get("rope_type", rotation.get("type")) in ("dynamic", "longrope")
        original = rotation.get("original_max_position_embeddings") or value("original_max_position_embeddings")
        positions = value("max_position_embeddings", "n_positions")
        return cls(
            name=str(getattr(config, "model_type", type(config).__name__)),
            heads=heads,
            key_heads=heads if latent else value("num_key_value_heads") or heads,
            size=size,
            value_size=value("v_head_dim") if latent else size,
            window=value("sliding_window") if slides else None,
            chunk=value("attention_chunk_size") if "chunked_attention" in kinds else None,
            positions=positions,
            same_rotation=(original or positions) if changing else None,
            others=tuple(sorted(kinds - ATTENTION_LAYERS)),
            capped=value("attn_logit_softcapping") is not None,
            token_bound=bool(value("hidden_size_per_layer_input")),
        )


def _largest(config: Any, name: str) -> Any:
    """A value of a configuration, None if it has none. Where layers differ in it (Gemma 4), the largest counts."""
    if name not in (getattr(config, "per_layer_attributes", None) or ()):
        return getattr(config, name, None)
    values = (getattr(layer, name, None) for layer in config.per_layer_config)
    return max((value for value in values if value is not None), default=None)


def read_config(model: ModelConfig) -> Any:
    """The LLM's configuration. Raises UserError if it cannot be read."""
    from transformers import AutoConfig

    from mtbi.llm.chat_format import resolve_llm

    try:
        return AutoConfig.from_pretrained(str(resolve_llm(model.llm)), trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.llm: cannot read the configuration of {model.llm!r}: {error}") from error


def checked_shape(config: Any) -> LLMShape:
    """The shape of an LLM that can be computed in packed rows, before weights are read. Raises UserError for any other."""
    shape = LLMShape.of(config)
    check_config(shape)
    check_class(config)
    return shape


def check_config(shape: LLMShape) -> None:
    """Raises UserError for an LLM that cannot be computed in packed rows, by its configuration."""
    sparse = [kind for kind in shape.others if kind.endswith("_attention") and kind != "linear_attention"]
    if sparse:
        raise UserError(
            f"model.llm: {shape.name} has layers of sparse attention ({', '.join(sparse)}), which packed rows do not support. "
            "Choose an LLM of full or sliding attention (docs/your-models.md)"
        )
    if shape.others:
        raise UserError(
            f"model.llm: {shape.name} has layers that are no attention ({', '.join(shape.others)}): they would carry one "
            "dialogue of a packed row into the next. Choose an LLM of attention layers only (docs/your-models.md)"
        )
    if shape.capped:
        raise UserError(f"model.llm: {shape.name} caps attention scores (softcap), which is not supported: choose another LLM")
    if shape.token_bound:
        raise UserError(
            f"model.llm: {shape.name} looks up an embedding of each token in every layer (hidden_size_per_layer_input), and "
            "speech has no tokens to look up: choose another LLM (docs/your-models.md)"
        )


def check_class(config: Any) -> None:
    """Raises UserError for an LLM whose class in transformers has attention code of its own. Remote code is not checked."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is not None and not kind._supports_attention_backend:
        raise UserError(f"model.llm: {kind.__name__} {NO_INTERFACE}")


def check_lengths(shape: LLMShape, longest_tokens: int) -> None:
    """Raises UserError if the plan's longest dialogue, in LLM positions, is too long for the LLM in a packed row."""
    remedy = "lower plan.max_audio_seconds or plan.row_tokens, leave long answers out, or choose another LLM"
    if shape.positions and longest_tokens > shape.positions:
        raise UserError(
            f"model.llm: {shape.name} knows {shape.positions} positions, the plan's longest dialogue takes up to "
            f"{longest_tokens}: {remedy}"
        )
    if shape.chunk and longest_tokens > shape.chunk:
        raise UserError(
            f"model.llm: {shape.name} attends inside chunks of {shape.chunk} tokens, which packed rows cannot do, and the "
            f"plan's longest dialogue takes up to {longest_tokens}: {remedy}"
        )
    if shape.same_rotation and longest_tokens > shape.same_rotation:
        raise UserError(
            f"model.llm: {shape.name} turns all positions of a row otherwise once one is beyond {shape.same_rotation} "
            f"(rope scaling dynamic or longrope), and the plan's longest dialogue takes up to {longest_tokens}: {remedy}"
        )


def check_model(llm: Any) -> None:
    """Raises UserError for an LLM whose class cannot be computed in packed rows. It may have no weights (`meta`)."""
    name = type(llm).__name__
    kinds = {type(module).__name__ for module in decoder_of(llm).modules() if isinstance(module, nn.Conv1d)}
    if kinds:
        raise UserError(
            f"model.llm: {name} has convolutions over tokens ({', '.join(sorted(kinds))}): they would carry one dialogue "
            "of a packed row into the next. Choose an LLM of attention layers only (docs/your-models.md)"
        )
    if not llm._supports_attention_backend:
        raise UserError(f"model.llm: {name} {NO_INTERFACE}")
    decoder_layers(llm)


def choose(
    attention: str, device: torch.device, dtype: torch.dtype, shape: LLMShape | None = None, longest_tokens: int | None = None
) -> tuple[str, str]:
    """The recipe's `model.attention` with `auto` decided, and the reason.

    `auto` is flash for half precision on a GPU if its kernels can compute the LLM's attention, else flex. It is dense for
    float32 and on CPUs. `longest_tokens` is the plan's longest dialogue in LLM positions; None = any length. Raises UserError
    for flash if it cannot compute the LLM's attention.
    """
    half_on_gpu = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    obstacle = _obstacle(shape, longest_tokens) if shape else ""
    if attention == "flash":
        if device.type == "cuda" and not half_on_gpu:
            raise UserError("model.attention=flash needs precision=bf16 on a GPU; use model.attention=dense with fp32")
        if obstacle:
            raise UserError(f"model.attention=flash: {obstacle}; use model.attention=auto, flex or dense")
    if attention != "auto":
        return attention, "the recipe says so"
    if not half_on_gpu:
        return "dense", "float32 on a GPU" if device.type == "cuda" else "on a CPU"
    return ("flex", obstacle) if obstacle else ("flash", "half precision on a GPU")


def _obstacle(shape: LLMShape, longest_tokens: int | None) -> str:
    """Why the variable-length kernels cannot compute an LLM's attention; empty if they can."""
    if shape.window is not None and (longest_tokens is None or longest_tokens > shape.window):
        length = "dialogues of any length" if longest_tokens is None else f"the longest dialogue ({longest_tokens} tokens)"
        return f"the sliding window of {shape.name} ({shape.window} tokens) is shorter than {length}"
    if shape.value_size != shape.size:
        return f"the value heads of {shape.name} have {shape.value_size} numbers, its query heads {shape.size}"
    if shape.size > LARGEST_FLASH_HEAD or shape.size % FLASH_HEAD_MULTIPLE:
        return f"heads of {shape.size} numbers ({shape.name}) are not what its kernels take"
    return ""


def decide(model: ModelConfig, device: torch.device, dtype: torch.dtype, longest_tokens: int | None) -> tuple[str, str]:
    """`choose` for a recipe's LLM. The LLM's kind and lengths are checked first, and flash kernels are tried on its heads.

    Raises UserError for an LLM or lengths that packed rows cannot do, and for flash if no kernel is right.
    """
    shape = checked_shape(read_config(model))
    if longest_tokens is not None:
        check_lengths(shape, longest_tokens)
    chosen, why = choose(model.attention, device, dtype, shape, longest_tokens)
    if chosen == "flash" and device.type == "cuda":
        try:
            why += f", kernels: {kernels.choose_kernels(device, shape.heads, shape.key_heads, shape.size)}"
        except UserError as error:
            if model.attention == "flash":
                raise
            return "flex", str(error)
    return chosen, why
