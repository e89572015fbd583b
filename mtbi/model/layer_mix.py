"""One sequence of features from several hidden layers of an encoder: their sum, with trained weights (`model.encoder.layers`).

Low layers of a speech encoder tell more about the voice, high ones about the words. The weighted sum is that of SUPERB
(Yang et al. 2021, arXiv 2105.01051). The weights are the softmax of trained scores, which begin equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mtbi.model.encoders.protocol import Taps

SPEED = 10.0  #: a score is so much larger than its parameter, so that the weights train at a learning rate for an adapter


class LayerMix(nn.Module):
    """Encoder features with several layers side by side, to a single layer of each encoder.

    Parameters belong to this module itself, and not to a list of them: ZeRO-3 gathers those of a module that is called.
    """

    def __init__(self, taps: Mapping[str, Taps]) -> None:
        """`taps` are the layers of each encoder, by its name in `beside`, in the order of the features."""
        super().__init__()
        self.taps = dict(taps)
        self.width = sum(part.width for part in taps.values())
        for name, part in taps.items():
            if len(part.layers) > 1:
                self.register_parameter(parameter_name(name), nn.Parameter(torch.zeros(len(part.layers))))
        self.weights: dict[str, Tensor] = {}  #: of each layer in the last call, `()` each, by the name in the log

    def forward(self, features: Tensor) -> Tensor:
        """`(clips, frames, sum of layers * width)` to `(clips, frames, sum of widths)`."""
        self.weights = {}
        parts = features.split([len(part.layers) * part.width for part in self.taps.values()], dim=2)
        return torch.cat([self._mix(name, part) for name, part in zip(self.taps, parts, strict=True)], dim=2)

    def _mix(self, name: str, features: Tensor) -> Tensor:
        layers, width = self.taps[name]
        if len(layers) == 1:
            return features
        weights = (SPEED * getattr(self, parameter_name(name)).float()).softmax(0)
        names = (f"layer_weight/{name}_{layer}" if name else f"layer_weight/{layer}" for layer in layers)
        self.weights |= dict(zip(names, weights.detach(), strict=True))
        return torch.einsum("cflw,l->cfw", features.unflatten(2, (len(layers), width)), weights.to(features.dtype))


def parameter_name(encoder: str) -> str:
    """The name of an encoder's scores in checkpoints, from its name in `beside`."""
    return f"scores_{encoder}" if encoder else "scores"


def build_mix(taps: Mapping[str, Taps]) -> LayerMix | None:
    """None where each encoder gives one layer."""
    return LayerMix(taps) if any(len(part.layers) > 1 for part in taps.values()) else None
