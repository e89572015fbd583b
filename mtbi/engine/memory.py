"""Estimates a run's memory on each GPU from the models' shapes, and chooses a ZeRO stage.

Model states follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054). Frozen weights have no gradient and no optimizer state.
What trains has both, and a float32 copy of its weights, whichever part it belongs to (`mtbi.engine.trained`).
Activations follow Korthikanti et al. 2022 (arXiv 2205.05198), with an attention that stores no scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mtbi.engine.trained import TITLES, CheckpointSize
from mtbi.llm import back_end, precision, trained_layers
from mtbi.llm.last_layer import decoder_of
from mtbi.model.adapter import build_adapter
from mtbi.model.encoders.build import set_trainable, shape_of_encoder
from mtbi.model.encoders.protocol import taps_of
from mtbi.model.flops import own_trained, size
from mtbi.recipe import LoraConfig, Recipe

ACTIVATION_BYTES = 34  #: for each token, channel and layer in 16 bits, without recomputation
STATE_BYTES = 12  #: for each trainable parameter: its float32 weight and Adam's two moments
LOGIT_COPIES = 2  #: in the model's precision, and in float32, which the gradient overwrites
FIXED_GB = 2.0  #: CUDA context, kernels, collective buffers
USABLE_SHARE = 0.92  #: of the device's memory; the rest is lost to fragmentation
SHARDINGS = (("ZeRO-1", 1), ("ZeRO-2", 2), ("ZeRO-3, weights whole in each node (hpZ)", 3), ("ZeRO-3", 3))


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, and shapes, of a speech LLM."""

    llm: int  #: all of it, LoRA left out
    encoder: int  #: the frozen ones
    trainable: int
    layers: int
    hidden: int
    vocabulary: int
    largest_layer: int  #: parameters of the embedding or of one layer, whichever is more
    llm_layers: int = 0  #: parameters of all layers; with `model.llm_fp8` each frozen one takes one byte
    llm_trained: int = 0  #: of `llm`, the ones that train
    copied: int = 0  #: numbers that the alignment loss copies of the LLM's embeddings, float32
    parts: dict[str, int] = field(default_factory=dict)  #: of `trainable`, by the title of the part


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory on each GPU for one way of sharding, in GB (1e9 bytes)."""

    name: str
    stage: int
    recomputed: bool  #: the backward pass computes the LLM's activations again
    frozen: float  #: weights, and the alignment loss's copies of embeddings
    trainable: float  #: weights, gradients and optimizer state of the trainable parameters
    activations: float
    gathered: float  #: layers that ZeRO-3 holds whole at one time

    @property
    def total(self) -> float:
        """The sum, with FIXED_GB for the driver and libraries."""
        return self.frozen + self.trainable + self.activations + self.gathered + FIXED_GB


def lora_size(model: torch.nn.Module, config: LoraConfig) -> int:
    """The number of parameters that LoRA adds to the named linear layers."""
    if not config.rank:
        return 0
    layers = (layer for name, layer in model.named_modules() if name.rsplit(".", 1)[-1] in config.targets)
    return sum(config.rank * (layer.in_features + layer.out_features) for layer in layers if isinstance(layer, torch.nn.Linear))


def sizes_of(recipe: Recipe) -> Sizes:
    """Sizes from the models' configurations, without their weights. Raises UserError if one cannot be read."""
    from transformers import AutoModelForCausalLM

    model = recipe.model
    config = back_end.read_config(model)
    back_end.checked_shape(config)
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    back_end.check_model(llm)
    config = config.get_text_config()
    encoder: Any = shape_of_encoder(model.encoder, model.trust_remote_code)
    set_trainable(encoder, model.encoder)
    with torch.device("meta"):
        adapter = build_adapter(model.adapter, encoder.width, config.hidden_size, taps=taps_of(encoder))
    trained_layers.set_trainable(llm, model.llm_trainable)
    tables = 1 if llm.get_output_embeddings().weight is llm.get_input_embeddings().weight else 2
    own = {
        "adapter": size(adapter),
        "encoder": own_trained(encoder),
        "encoder_lora": lora_size(encoder, model.encoder_lora),
        "llm": own_trained(llm),
        "llm_lora": lora_size(llm, model.llm_lora),
        "new_tokens": len(model.new_tokens) * config.hidden_size * tables,
        "later_tokens": recipe.loss.later_tokens * config.hidden_size**2,
    }
    embedding = size(llm.get_input_embeddings())
    layer = (size(llm) - embedding) // config.num_hidden_layers
    return Sizes(
        size(llm),
        size(encoder) - own["encoder"],
        sum(own.values()),
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
        max(embedding, layer),
        size(decoder_of(llm)) - embedding,
        own["llm"],
        copied_embeddings(recipe, config.vocab_size) * config.hidden_size,
        {TITLES[part]: number for part, number in own.items()},
    )


def copied_embeddings(recipe: Recipe, vocabulary: int) -> int:
    """The number of embeddings that the alignment loss copies: of its common tokens, and of silence."""
    if not (recipe.loss.alignment or recipe.train.alignment_steps):
        return 0
    return min(recipe.loss.alignment_tokens or vocabulary, vocabulary) + 1


def checkpoint_of(recipe: Recipe, sizes: Sizes) -> CheckpointSize:
    """What a checkpoint of the recipe will hold."""
    return CheckpointSize.of(sizes.parts, recipe.train)


def weight_bytes(recipe: Recipe) -> int:
    """Bytes of one weight on a GPU."""
    return precision.of(recipe.precision, "cuda").itemsize


def estimates(
    recipe: Recipe, sizes: Sizes, gpus: int, gpus_per_node: int = 8, recomputed: bool = False
) -> Iterator[MemoryEstimate]:
    """One estimate for each way of sharding, from the one that communicates least to the one that needs least memory.

    `recomputed` is used in place of `model.activation_checkpointing`.
    """
    width = weight_bytes(recipe)
    tokens = recipe.plan.row_tokens * recipe.plan.rows_per_micro_batch
    per_layer = tokens * sizes.hidden * ACTIVATION_BYTES * width / 2
    activations = per_layer * sizes.layers
    if recomputed:
        activations = tokens * sizes.hidden * width * sizes.layers + per_layer
    activations += recipe.loss.chunk * sizes.vocabulary * 4 * LOGIT_COPIES
    llm = (sizes.llm - sizes.llm_trained) * width
    if recipe.model.llm_fp8:
        llm -= (sizes.llm_layers - sizes.llm_trained) * (width - 1)
    for name, stage in SHARDINGS[:2] if recipe.model.llm_fp8 else SHARDINGS:  # 8-bit floats are not partitioned
        weight_shards = 1 if stage < 3 else min(gpus_per_node, gpus) if "hpZ" in name else gpus
        frozen = llm / weight_shards + sizes.encoder * width + sizes.copied * 4
        weights = sizes.trainable * width / weight_shards
        gradients = sizes.trainable * width / (gpus if stage >= 2 else 1)
        states = sizes.trainable * STATE_BYTES / gpus
        # Two layers, and the gradient of one that trains, which is summed over the GPUs when it is whole.
        gathered = (3 if sizes.llm_trained else 2) * sizes.largest_layer * width if stage == 3 else 0
        parts = (frozen, weights + gradients + states, activations, gathered)
        yield MemoryEstimate(name, stage, recomputed, *(part / 1e9 for part in parts))


def choose(candidates: Iterable[MemoryEstimate], gpu_gb: float) -> MemoryEstimate | None:
    """The first that fits, which communicates least; None if none fits."""
    return next((estimate for estimate in candidates if fits(estimate, gpu_gb)), None)


def fits(estimate: MemoryEstimate, gpu_gb: float) -> bool:
    """Whether a GPU with `gpu_gb` GB has enough memory."""
    return estimate.total <= USABLE_SHARE * gpu_gb


def survey(
    recipe: Recipe, sizes: Sizes, gpus: int, gpu_gb: float, gpus_per_node: int = 8
) -> tuple[list[MemoryEstimate], MemoryEstimate | None]:
    """The estimates for all ways of sharding, and the best of them (None if nothing fits).

    With `model.activation_checkpointing=auto` they include recomputation only if nothing fits without it.
    """
    recompute = recipe.model.activation_checkpointing
    candidates = list(estimates(recipe, sizes, gpus, gpus_per_node, recompute == "on"))
    best = choose(candidates, gpu_gb)
    if recompute == "auto" and best is None:
        candidates = list(estimates(recipe, sizes, gpus, gpus_per_node, recomputed=True))
        best = choose(candidates, gpu_gb)
    return candidates, best


def decide(recipe: Recipe, sizes: Sizes, gpus: int, stage: int, gpu_gb: float, node: int = 1) -> tuple[str, float]:
    """What `model.activation_checkpointing=auto` means in training: `on` or `off`, and the GB on each GPU with `off`.

    `stage` is ZeRO's. Stage 3 splits weights over `node` GPUs (hpZ); 1 = over all GPUs.
    """
    candidates = estimates(recipe, sizes, gpus, node if node > 1 else gpus)
    estimate = next(candidate for candidate in candidates if candidate.stage == stage)
    return "off" if fits(estimate, gpu_gb) else "on", estimate.total
