"""Encoders of Hugging Face transformers: their configurations, their weights, and the layers that a recipe keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mtbi.errors import UserError
from mtbi.model.encoders.protocol import Architecture, EncoderFacts, output_name
from mtbi.recipe import EncoderConfig


class PretrainedFamily:
    """What the families of transformers' models have in common."""

    def __init__(self, trust_remote_code: bool = False) -> None:
        self.trust_remote_code = trust_remote_code

    def facts(self, config: EncoderConfig, /) -> EncoderFacts:
        """The path and layer name the output."""
        return EncoderFacts(output_name(config), (config.path,), config.trainable)

    def settings(self, config: EncoderConfig) -> Any:
        """The model's own configuration, without its random changes of the input in training."""
        settings = read_settings(config.path, self.trust_remote_code)
        settings.apply_spec_augment, settings.layerdrop = False, 0.0
        return settings

    def load(self, config: EncoderConfig, dtype: torch.dtype, model_class: Any = None, **options: Any) -> Any:
        """The model with its weights, in evaluation mode. Raises UserError where it cannot be read.

        `model_class` is a class of transformers, None = the configuration's own. `options` are those of its `from_pretrained`.
        """
        from transformers import AutoModel

        settings = self.settings(config)
        try:
            return (model_class or AutoModel).from_pretrained(
                config.path, config=settings, dtype=dtype, trust_remote_code=self.trust_remote_code, **options
            )
        except (OSError, ValueError) as error:
            raise UserError(f"model.encoder.path: cannot load {config.path!r}: {error}") from error

    def settings_with_layers(self, config: EncoderConfig, field: str) -> Architecture:
        """The configuration as JSON holds it, with the number of layers, in `field`, that the recipe keeps.

        `output_layers` is added where the recipe names several.
        """
        settings = self.settings(config)
        values = settings.to_dict()
        for name in ("_name_or_path", "dtype", "torch_dtype"):  # they belong to one machine, or to one run
            values.pop(name, None)
        chosen = output_layers(getattr(settings, field), config)
        return values | {field: chosen[-1]} | ({"output_layers": list(chosen)} if config.layers else {})


def read_settings(path: str, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of an encoder. Raises UserError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.encoder.path: cannot read the configuration of {path!r}: {error}") from error


def from_architecture(architecture: Architecture) -> Any:
    """The transformers configuration that an architecture describes."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[architecture["model_type"]](
        **{name: value for name, value in architecture.items() if name not in ("model_type", "output_layers")}
    )


def keep_layers(layers: Any, config: EncoderConfig) -> nn.ModuleList:
    """The layers up to the highest output layer."""
    return layers[: output_layers(len(layers), config)[-1]]


def output_layers(available: int, config: EncoderConfig) -> tuple[int, ...]:
    """The numbers of the hidden layers that the adapter gets, the lowest first. Raises UserError where there are fewer.

    `config.layers` counts in the layers up to `config.layer`.
    """
    highest = layer_number(config.layer, available, f"model.encoder.layer={config.layer}", config.path)
    if config.layers == "all":
        return tuple(range(highest + 1))
    layers = [int(layer) for layer in config.layers] or [highest]
    field = f"model.encoder.layers={config.layers}"
    return tuple(sorted({layer_number(layer, highest, field, config.path) for layer in layers}))


def layer_number(layer: int, available: int, field: str, path: str) -> int:
    """A layer from 0; below 0 it is counted from the last. Raises UserError where the encoder has no such layer."""
    number = layer if layer >= 0 else available + 1 + layer
    if not 0 <= number <= available:
        raise UserError(f"{field}: {path!r} has layers 0 to {available}")
    return number
