"""How much memory a run needs on each GPU, from shapes alone, and which ZeRO stage to take.

Model states follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) with frozen weights, which have no gradient and no
optimizer state; activations follow Korthikanti et al. 2022 (arXiv 2205.05198) with an attention that keeps no scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mtbi.llm import back_end
from mtbi.model.adapter import build_adapter
from mtbi.model.encoders.build import set_trainable, shape_of_encoder
from mtbi.model.flops import size
from mtbi.recipe import LoraConfig, Recipe

ACTIVATION_BYTES = 34  #: for each token, channel and layer in 16 bits, without recomputation
STATE_BYTES = 12  #: float32 weight and Adam's two moments of a parameter that trains
LOGIT_COPIES = 2  #: in the model's precision, and in float32, where their gradient takes their place
FIXED_GB = 2.0  #: context, kernels, collective buffers
USABLE_SHARE = 0.92  #: of the device's memory, against fragmentation
PLACES = (("ZeRO-1", 1), ("ZeRO-2", 2), ("ZeRO-3, weights whole in each node (hpZ)", 3), ("ZeRO-3", 3))


@dataclass(frozen=True)
class Sizes:
    """Parameters and shapes of a model."""

    llm: int
    encoder: int
    trainable: int
    layers: int
    hidden: int
    vocabulary: int
    largest_layer: int  #: parameters of the embedding or of one layer, whichever is more
    llm_layers: int = 0  #: parameters of all layers, which `model.llm_fp8` keeps in a byte each


@dataclass(frozen=True)
class Estimate:
    """Gigabytes (1e9 bytes) on each GPU."""

    name: str
    stage: int
    recomputed: bool  #: the LLM's activations, in the backward pass
    frozen: float
    trainable: float  #: weights, gradients and optimizer state of what trains
    activations: float
    gathered: float  #: layers that ZeRO-3 has together at once

    @property
    def total(self) -> float:
        """Everything, with what the driver and libraries take."""
        return self.frozen + self.trainable + self.activations + self.gathered + FIXED_GB


def lora_size(model: torch.nn.Module, config: LoraConfig) -> int:
    """Parameters of the low-rank updates of the named linear layers."""
    if not config.rank:
        return 0
    layers = (layer for name, layer in model.named_modules() if name.rsplit(".", 1)[-1] in config.targets)
    return sum(config.rank * (layer.in_features + layer.out_features) for layer in layers if isinstance(layer, torch.nn.Linear))


def sizes_of(recipe: Recipe) -> Sizes:
    """Sizes from the models' configurations, without reading weights. Raises UserError where there is none."""
    from transformers import AutoModelForCausalLM

    model = recipe.model
    config = back_end.read_config(model)
    back_end.check_config(back_end.LLMShape.of(config))
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    back_end.check_model(llm)
    config = config.get_text_config()
    encoder: Any = shape_of_encoder(model.encoder, model.trust_remote_code)
    set_trainable(encoder, model.encoder)
    with torch.device("meta"):
        adapter = build_adapter(model.adapter, encoder.width, config.hidden_size)
    trainable = size(adapter) + lora_size(llm, model.llm_lora) + lora_size(encoder, model.encoder_lora)
    own_weights = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    embedding = size(llm.get_input_embeddings())
    layer = (size(llm) - embedding) // config.num_hidden_layers
    return Sizes(
        size(llm),
        size(encoder) - own_weights,
        trainable + own_weights,
        config.num_hidden_layers,
        config.hidden_size,
        config.vocab_size,
        max(embedding, layer),
        size(llm.get_decoder()) - embedding,
    )


def weight_bytes(recipe: Recipe) -> int:
    """Bytes of a weight on a GPU."""
    return 4 if recipe.precision == "fp32" else 2


def estimates(recipe: Recipe, sizes: Sizes, gpus: int, gpus_per_node: int = 8, recomputed: bool = False) -> Iterator[Estimate]:
    """One estimate for each way of sharing, from the one that communicates least to the one that needs least memory.

    `recomputed` is taken for what `model.activation_checkpointing` says.
    """
    width = weight_bytes(recipe)
    tokens = recipe.plan.row_tokens * recipe.plan.rows_per_micro_batch
    per_layer = tokens * sizes.hidden * ACTIVATION_BYTES * width / 2
    activations = per_layer * sizes.layers
    if recomputed:
        activations = tokens * sizes.hidden * width * sizes.layers + per_layer
    activations += recipe.loss.chunk * sizes.vocabulary * 4 * LOGIT_COPIES
    llm = sizes.llm * width - (sizes.llm_layers * (width - 1) if recipe.model.llm_fp8 else 0)
    for name, stage in PLACES[:2] if recipe.model.llm_fp8 else PLACES:  # 8-bit floats are not partitioned
        sharers = min(gpus_per_node, gpus) if "hpZ" in name else gpus
        frozen = llm / (sharers if stage == 3 else 1) + sizes.encoder * width
        weights = sizes.trainable * width / (sharers if stage == 3 else 1)
        gradients = sizes.trainable * width / (gpus if stage >= 2 else 1)
        states = sizes.trainable * STATE_BYTES / gpus
        gathered = 2 * sizes.largest_layer * width if stage == 3 else 0
        parts = (frozen, weights + gradients + states, activations, gathered)
        yield Estimate(name, stage, recomputed, *(part / 1e9 for part in parts))


def choose(found: Iterable[Estimate], gpu_gb: float) -> Estimate | None:
    """The first that fits: the one that communicates least. None where nothing does."""
    return next((one for one in found if fits(one, gpu_gb)), None)


def fits(one: Estimate, gpu_gb: float) -> bool:
    """Whether a GPU of so many GB has room for it."""
    return one.total <= USABLE_SHARE * gpu_gb


def survey(
    recipe: Recipe, sizes: Sizes, gpus: int, gpu_gb: float, gpus_per_node: int = 8
) -> tuple[list[Estimate], Estimate | None]:
    """All ways of sharing, and the one to take (None where nothing fits).

    With `model.activation_checkpointing=auto` they are with recomputation only where nothing fits without it.
    """
    recompute = recipe.model.activation_checkpointing
    found = list(estimates(recipe, sizes, gpus, gpus_per_node, recompute == "on"))
    best = choose(found, gpu_gb)
    if recompute == "auto" and best is None:
        found = list(estimates(recipe, sizes, gpus, gpus_per_node, recomputed=True))
        best = choose(found, gpu_gb)
    return found, best


def decide(recipe: Recipe, sizes: Sizes, gpus: int, stage: int, gpu_gb: float, node: int = 1) -> tuple[str, float]:
    """What `auto` of `model.activation_checkpointing` is in training: `on` or `off`, and the GB that a GPU needs with it off.

    `stage` is ZeRO's; the third splits weights over `node` GPUs (hpZ), 1 = over all.
    """
    need = next(one for one in estimates(recipe, sizes, gpus, node if node > 1 else gpus) if one.stage == stage)
    return "off" if fits(need, gpu_gb) else "on", need.total
