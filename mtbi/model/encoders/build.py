"""The encoder of a recipe: its family is chosen here, and everything else asks here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mtbi import plugins
from mtbi.errors import UserError
from mtbi.model.encoders.pretrained import read_settings
from mtbi.model.encoders.protocol import (
    Architecture,
    ComputedFeatures,
    EncoderFacts,
    EncoderFamily,
    EncoderPlugin,
    SpeechEncoder,
    Stages,
    count_frames,
    min_samples,
    output_name,
)
from mtbi.recipe import EncoderConfig, LoraConfig

PLUGIN = "plugin:"
#: Families of transformers' models by their `model_type`.
FAMILIES = {
    "whisper": "mtbi.model.encoders.whisper:WhisperFamily",
    "wav2vec2": "mtbi.model.encoders.wav2vec2:Wav2Vec2Family",
    "hubert": "mtbi.model.encoders.wav2vec2:Wav2Vec2Family",
    "wavlm": "mtbi.model.encoders.wav2vec2:Wav2Vec2Family",
}
MINIATURE = "mtbi-demo-encoder"  #: `model_type` of the encoder with the path `demo`
SIDE_BY_SIDE = "mtbi-side-by-side"  #: `model_type` of several encoders
#: Families of mtbi's own encoders by the `model_type` in their descriptions.
OWN_FAMILIES = {
    MINIATURE: plugins.SHIPPED[plugins.ENCODERS]["demo"],
    SIDE_BY_SIDE: "mtbi.model.encoders.several:SideBySideFamily",
}


def family_of(config: EncoderConfig, trust_remote_code: bool = False) -> EncoderFamily:
    """The family of a recipe's encoder. Raises UserError where the model cannot be read or its family is not supported."""
    if config.beside:
        return family_named(SIDE_BY_SIDE, trust_remote_code)
    if config.path in plugins.SHIPPED[plugins.ENCODERS] or config.path.startswith(PLUGIN):
        return family_named(config.path, trust_remote_code)
    kind = read_settings(config.path, trust_remote_code).model_type
    if kind not in FAMILIES:
        supported = ", ".join((*plugins.SHIPPED[plugins.ENCODERS], *FAMILIES, f"{PLUGIN}NAME"))
        raise UserError(f"model.encoder.path: {config.path!r} is of type {kind!r}; supported: {supported}")
    return family_named(kind, trust_remote_code)


def family_named(name: str, trust_remote_code: bool = False) -> EncoderFamily:
    """The family of a `model_type`, of the shipped encoder `demo`, or of `plugin:NAME`."""
    if name.startswith(PLUGIN):
        return InstalledFamily(name.removeprefix(PLUGIN).partition(":")[0])
    families = FAMILIES | OWN_FAMILIES | plugins.SHIPPED[plugins.ENCODERS]
    return plugins.import_part(families[name])(trust_remote_code)


class NotDescribedError(UserError):
    """Only `build` can make this encoder: its package has no `describe` and `empty`."""


class InstalledFamily:
    """An encoder that another package adds, by the path `plugin:NAME` or `plugin:NAME:WEIGHTS` (docs/plugins.md)."""

    def __init__(self, name: str) -> None:
        """Raises UserError where no installed package has it."""
        self.name = name
        self.plugin: EncoderPlugin = plugins.find(plugins.ENCODERS, name, {}, "model.encoder.path: plugin")

    def own_settings(self, config: EncoderConfig) -> EncoderConfig:
        """The encoder's section as the package gets it: with WEIGHTS as the path."""
        return replace(config, path=config.path.removeprefix(PLUGIN).partition(":")[2])

    def stages(self, config: EncoderConfig, /) -> tuple[Stages, int | None]:
        """The package's."""
        return self.plugin.stages(self.own_settings(config))

    def build(self, config: EncoderConfig, dtype: torch.dtype, /) -> nn.Module:
        """The package's, in evaluation mode."""
        return self.plugin.build(self.own_settings(config), dtype).eval()

    def facts(self, config: EncoderConfig, /) -> EncoderFacts:
        """The path and layer name the output."""
        weights = self.own_settings(config).path or f"{PLUGIN}{self.name}"
        return EncoderFacts(output_name(config), (weights,), config.trainable)

    def describe(self, config: EncoderConfig, /) -> Architecture:
        """The package's, with its name as `model_type`. Raises NotDescribedError where it has no `describe`."""
        return {**self._optional("describe")(self.own_settings(config)), "model_type": f"{PLUGIN}{self.name}"}

    def empty(self, architecture: Architecture, /) -> nn.Module:
        """The package's. Raises NotDescribedError where it has no `empty`."""
        return self._optional("empty")({name: value for name, value in architecture.items() if name != "model_type"})

    def _optional(self, function: str) -> Any:
        if not (hasattr(self.plugin, "describe") and hasattr(self.plugin, "empty")):
            raise NotDescribedError(
                f"the encoder {PLUGIN}{self.name} has no `describe` and `empty` (docs/plugins.md): export with --layout trained"
            )
        return getattr(self.plugin, function)


def encoder_stages(config: EncoderConfig, trust_remote_code: bool = False) -> tuple[Stages, int | None]:
    """Stages, and the longest clip in samples (None = any), without reading weights."""
    return family_of(config, trust_remote_code).stages(config)


def encoder_facts(config: EncoderConfig, trust_remote_code: bool = False) -> EncoderFacts:
    """Name of the output, sources of the weights, and whether any weights train."""
    return family_of(config, trust_remote_code).facts(config)


def build_encoder(
    config: EncoderConfig, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> nn.Module:
    """A pretrained encoder: `forward(waveforms (clips, samples), lengths (clips,))` to features and lengths, and `width`.

    Layers above the highest output layer are dropped. Raises UserError for a family that is not supported, and for an
    installed encoder whose outputs are not those of its stages.
    """
    family = family_of(config, trust_remote_code)
    encoder = family.build(config, dtype).to(device)
    if isinstance(family, InstalledFamily):
        check_frames(encoder, family.stages(config)[0], config.path, device)
        if config.layers and not hasattr(encoder, "output_layers"):
            raise UserError(
                f"model.encoder.layers: {config.path!r} has no `output_layers`, so it gives one layer only (docs/plugins.md)"
            )
    return encoder


def describe_encoder(config: EncoderConfig, trust_remote_code: bool = False) -> Architecture:
    """What `empty_encoder` builds. Raises UserError where only `build_encoder` can make the encoder."""
    return family_of(config, trust_remote_code).describe(config)


def empty_encoder(architecture: Architecture) -> nn.Module:
    """The encoder that `describe_encoder` described, without pretrained weights, on torch's default device."""
    return family_named(architecture["model_type"]).empty(architecture)


def shape_of_encoder(config: EncoderConfig, trust_remote_code: bool = False) -> nn.Module:
    """The encoder without memory for its weights, to count parameters; an installed one may have to be built with them."""
    family = family_of(config, trust_remote_code)
    try:
        architecture = family.describe(config)
    except NotDescribedError:
        return build_encoder(config, torch.float32, torch.device("cpu"), trust_remote_code)
    with torch.device("meta"):
        return family.empty(architecture)


def set_trainable(encoder: nn.Module, config: EncoderConfig) -> None:
    """Let an encoder's own weights train, or freeze them, as the recipe says."""
    if isinstance(encoder, SpeechEncoder):
        encoder.set_trainable(config)
    else:
        encoder.requires_grad_(config.trainable)


def check_lora(encoder: nn.Module, config: EncoderConfig, lora: LoraConfig) -> None:
    """Raises UserError where low-rank updates are asked for and would have no effect on the encoder."""
    if lora.rank and not getattr(encoder, "takes_lora", True):
        raise UserError(
            f"model.encoder_lora: the {config.path} encoder takes none; set model.encoder.trainable=true to train it"
        )


def restore_filters(encoder: nn.Module) -> None:
    """Compute the filters of features again, in float32: loading may leave them empty, or in the model's precision."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        for module in [module for module in encoder.modules() if isinstance(module, ComputedFeatures)]:
            with torch.device("cpu"):
                fresh = module.fresh_buffers()
            for name, value in fresh.items():
                parent, _, leaf = name.rpartition(".")
                owner = module.get_submodule(parent)
                setattr(owner, leaf, value.to(getattr(owner, leaf).device))
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def check_frames(encoder: Any, stages: Stages, path: str, device: torch.device) -> None:
    """Encode three clips. Raises UserError where frames or width are not those of `stages` and `encoder.width`."""
    lengths = torch.tensor([1, 4321, 16_000])
    waveforms = torch.linspace(-0.1, 0.1, 16_000) * (torch.arange(16_000) < lengths[:, None])
    features, frames = encoder(waveforms.to(device), lengths.to(device))
    expected = count_frames(lengths.clamp(min=min_samples(stages)), stages).tolist()
    if frames.tolist() != expected or tuple(features.shape) != (3, expected[-1], encoder.width):
        raise UserError(
            f"model.encoder.path: {path!r} makes {frames.tolist()} frames, {tuple(features.shape)}, of {lengths.tolist()} "
            f"samples; its stages say {expected}, its width is {encoder.width} (docs/plugins.md)"
        )
