from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ToyEncoder, make_llm
from torch import nn

from mtbi.llm import attention
from mtbi.model.adapter import build_adapter, output_layer
from mtbi.model.closed_form import Fit, OutputRegression, Shares, Spoken
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import AdapterConfig, LossConfig
from mtbi.shards.record import StoredUtterance

FRAME = 320.0  #: samples between two adapter frames: two encoder frames of 160 samples
KINDS = [
    *(AdapterConfig(kind, 2, hidden=16) for kind in ("mlp", "swiglu", "conv")),
    AdapterConfig("qformer", 4, 16, 2, 1, 2),
    AdapterConfig("transformer", 2, 16),
]
INDEX: Any = SimpleNamespace(encoded="", feature_width=0)


def spoken(times: list[tuple[int, int]], ids: list[list[int]], samples: int = 3200) -> Spoken:
    """An utterance of noise."""
    wave = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    return Spoken(StoredUtterance("u", "", "", wave, np.array(times, np.uint32), [*map(np.array, ids)], []), samples)


UTTERANCES = [
    spoken([(300, 1000), (1200, 2500)], [[5], [6, 7, 8]]),
    spoken([(0, 700), (700, 900), (900, 2000)], [[9, 4], [5], [11]], samples=2000),
    spoken([(100, 1500)], [[7]], samples=1500),
]


def make(config: AdapterConfig) -> SpeechLLMModule:
    llm = make_llm("llama", attention.DENSE)
    torch.manual_seed(1)
    adapter = build_adapter(config, ToyEncoder.width, 32, 0.5)
    return SpeechLLMModule(ToyEncoder().requires_grad_(False), adapter, llm, LossConfig())


def regression_of(model: SpeechLLMModule, *silence: int) -> OutputRegression:
    layer = output_layer(model.adapter, ToyEncoder.width)  # type: ignore[arg-type]
    assert layer is not None
    return OutputRegression(model, layer, INDEX, FRAME, list(silence), weight=0.2)


def shares_of(utterance: Spoken, frames: int) -> Shares:
    return Shares.of(utterance, frames, FRAME)


def test_the_tokens_of_a_word_share_its_time() -> None:
    shares = shares_of(UTTERANCES[0], 10)
    assert shares.ids.tolist() == [5, 6, 7, 8]
    assert shares.middle.tolist() == [2, 4, 5, 7]  # at 650, 1417, 1850 and 2283 samples
    inside = [row.nonzero().flatten().tolist() for row in shares.inside]
    assert inside == [[1, 2], [4], [5], [6, 7]]
    late = shares_of(spoken([(0, 3200)], [[1, 2]]), 3)
    assert late.middle.tolist() == [2, 2]  # none is beyond the last frame
    assert shares.highest(torch.arange(40.0).view(4, 10)).tolist() == [2, 4, 5, 7]


def test_a_solution_moves_tokens_to_the_frames_that_are_most_like_them() -> None:
    model = make(KINDS[0])
    regression = regression_of(model, 20)
    shares = shares_of(spoken([(0, 1600), (1600, 3200)], [[5], [6]]), 10)
    table = model.llm.get_input_embeddings().weight.double()
    hidden, solution = torch.eye(10, regression.inputs, dtype=torch.float64), torch.zeros(regression.inputs, 32).double()
    solution[:10] = regression.silence
    solution[1], solution[3], solution[8] = table[5], 4 * table[9], table[6]
    assert regression.token_frames(shares, hidden, None).tolist() == [2, 7]
    assert regression.token_frames(shares, hidden, solution).tolist() == [1, 8]
    assert regression.token_frames(shares, hidden, solution, known=False).tolist() == [3, 8]


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_no_other_output_layer_is_nearer_to_the_words(config: AdapterConfig) -> None:
    """The gradient of the penalised distance is zero at the solution, computed through the whole model."""
    model = make(config)
    regression = regression_of(model)
    layer, penalty = regression.layer, 0.01
    sums = regression.sums(UTTERANCES)
    ridge = penalty * sums.diagonal()[: layer.in_features].mean()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        distance: Any = (layer.weight * layer.scale).double().square().sum() * ridge
        for utterance in UTTERANCES:
            frames = model.encode_waveform(utterance.sound)
            shares = shares_of(utterance, len(frames))
            wanted, weight = regression.targets(shares.ids, shares.middle, len(frames))
            distance = distance + ((frames - wanted).square().sum(1) * weight).sum()
        distance.backward()
        return [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]

    before = gradients()
    solution = regression.solve(sums, penalty)
    assert solution is not None
    regression.put(solution)
    assert len(before) == (1 if config.kind == "swiglu" else 2)
    for after, first in zip(gradients(), before, strict=True):
        assert after.abs().max() < 1e-4 * first.abs().max()


def test_frames_without_a_token_are_silence() -> None:
    model = make(KINDS[0])
    regression = regression_of(model, 20, 21)
    shares = shares_of(UTTERANCES[1], 7)
    wanted, weight = regression.targets(shares.ids, shares.middle, 7)
    table = model.llm.get_input_embeddings().weight.double()
    torch.testing.assert_close(regression.mean, table.mean(0))
    torch.testing.assert_close(wanted[0], table[9])
    torch.testing.assert_close(wanted[1], table[4])
    torch.testing.assert_close(wanted[2], table[5])
    torch.testing.assert_close(wanted[6], table[20:22].mean(0))
    assert weight.tolist() == [1, 1, 1, 0.2, 1, 0.2, 0.2]
    crowded, _ = regression.targets(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 1, 1]), 2)
    torch.testing.assert_close(crowded[1], table[2:5].mean(0))
    torch.testing.assert_close(regression_of(model).silence, table.mean(0))


def test_sums_of_parts_add_up_and_equations_without_a_solution_are_found() -> None:
    regression = regression_of(make(KINDS[0]))
    whole = regression.sums(UTTERANCES)
    torch.testing.assert_close(regression.sums(UTTERANCES[:1]) + regression.sums(UTTERANCES[1:]), whole)
    assert regression.solve(regression.empty(), 0.1) is None
    assert regression.solve(torch.full_like(whole, torch.nan), 0.1) is None
    assert regression.solve(whole, 0.1) is not None


def test_the_fit_counts_words_of_one_token_whose_own_embedding_is_nearest() -> None:
    model = make(KINDS[0])
    regression = regression_of(model)
    exact = torch.zeros(regression.inputs, 32, dtype=torch.float64)
    exact[-1] = model.llm.get_input_embeddings().weight[5]  # the bias alone
    hidden, tokens = regression.words(UTTERANCES, exact)
    assert tokens.tolist() == [5, 5, 11, 7]
    assert regression.fit(exact, hidden, tokens).first == 2
    assert str(Fit(4, 2, 3)) == "of 4 other words 50.0% are nearest to their token, 75.0% among the nearest 10"
    assert "no words" in str(regression.fit(exact, hidden[:0], tokens[:0]))


class Twice(nn.Module):
    """An adapter's own kind, and something after its output layer."""

    def __init__(self, kind: nn.Module) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, frames: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        return 2 * self.kind(frames, exists)


class Sum(nn.Module):
    """Two kinds, each with an output layer."""

    def __init__(self, kind: nn.Module) -> None:
        super().__init__()
        self.one, self.other = kind, deepcopy(kind)

    def forward(self, frames: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        return self.one(frames, exists) + self.other(frames, exists)


class Without(nn.Module):
    """A kind without a layer of the type Output."""

    def __init__(self, kind: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 32)

    def forward(self, frames: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        return self.layer(frames[:, ::2])


@pytest.mark.parametrize("wrapped", [Twice, Sum, Without])
def test_an_adapter_that_does_not_end_in_one_output_layer_is_found(wrapped: Callable[[Any], nn.Module]) -> None:
    adapter = build_adapter(KINDS[0], 12, 32, 0.5)
    assert output_layer(adapter, 12) is adapter.kind.output
    adapter.kind = wrapped(adapter.kind)
    assert output_layer(adapter, 12) is None
