"""Several output layers of an encoder: each is what the encoder gives with that layer alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtbi.errors import UserError
from mtbi.model.encoders.build import build_encoder, describe_encoder, empty_encoder, encoder_facts, shape_of_encoder
from mtbi.model.encoders.protocol import Taps, taps_of
from mtbi.recipe import EncoderConfig

CPU = torch.device("cpu")


def encoded(config: EncoderConfig, waveforms: Tensor, lengths: Tensor) -> Tensor:
    with torch.no_grad():
        return build_encoder(config, torch.float32, CPU).eval()(waveforms, lengths)[0]


@pytest.mark.parametrize("kind", ["demo", "whisper", "wav2vec2", "wav2vec2-stable", "hubert", "wavlm"])
def test_each_layer_is_what_the_encoder_gives_with_that_layer_alone(kind: str, saved, clips) -> None:
    path = "demo" if kind == "demo" else saved(kind)
    waveforms, lengths = clips([16_000, 3_000, 9_000])
    config = EncoderConfig(path, layers=[-1, 0, 1])
    built = build_encoder(config, torch.float32, CPU).eval()
    numbers = built.output_layers
    assert numbers[:2] == (0, 1)
    with torch.no_grad():
        features = built(waveforms, lengths)[0]
    assert features.shape[2] == built.width
    for number, layer in zip(numbers, features.chunk(len(numbers), 2), strict=True):
        alone = encoded(EncoderConfig(path, layer=number), waveforms, lengths)
        torch.testing.assert_close(layer, alone, rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    again = empty_encoder(describe_encoder(config)).eval()
    assert (again.width, again.output_layers) == (built.width, numbers)
    assert taps_of(shape_of_encoder(config)) == taps_of(built) == {"": Taps(numbers, built.width // len(numbers))}


def test_names_and_mistakes() -> None:
    for layers, message in (([4], "has layers 0 to 3"), ([-5], "has layers 0 to 3")):
        with pytest.raises(UserError, match=message):
            build_encoder(EncoderConfig("demo", layers=layers), torch.float32, CPU)
    everything = build_encoder(EncoderConfig("demo", layer=2, layers="all"), torch.float32, CPU)
    assert everything.output_layers == (0, 1, 2)
    names = {encoder_facts(EncoderConfig("demo", layers=layers)).output_name for layers in ([], [0, 3], "all")}
    assert len(names) == 3
