from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtbi.batches.batch import Batch
from mtbi.model import frame_classes
from mtbi.model.frame_classes import FrameClasses
from mtbi.model.losses import alignment
from mtbi.model.losses.alignment import AlignmentLoss, AlignmentSums, placements
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import LossConfig

VOCABULARY, HIDDEN, SILENCE = 40, 16, 2


@pytest.fixture
def embeddings() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY, HIDDEN).requires_grad_(False)


def loss_over(embeddings: nn.Embedding, tokens: int = 0, chunk: int = 1024) -> AlignmentLoss:
    """The loss against the first `tokens` of the embeddings, 0 = all."""
    config = LossConfig(alignment=0.5, chunk=chunk)
    return AlignmentLoss(config, FrameClasses(embeddings, torch.arange(embeddings.num_embeddings), [SILENCE], tokens))


def spoken(ids: list[list[int]]) -> Any:
    """Of a batch, what the loss reads."""
    longest = max(map(len, ids))
    padded = torch.tensor([own + [0] * (longest - len(own)) for own in ids])
    return SimpleNamespace(spoken_ids=padded, spoken_lengths=torch.tensor([len(own) for own in ids]))


def every_placement(counts: list[int], ids: list[list[int]], silence: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Log-probability of all placements of each clip, and the share of each frame and token, one placement after another."""
    results = []
    for clip, own in enumerate(ids):
        scores, share = [], torch.zeros_like(tokens[clip])
        for chosen in itertools.combinations(range(counts[clip]), len(own)):
            free = [frame for frame in range(counts[clip]) if frame not in chosen]
            score = silence[clip, free].sum() + sum(tokens[clip, frame, number] for number, frame in enumerate(chosen))
            scores.append(score)
            for number, frame in enumerate(chosen):
                share[frame, number] += score.exp()
        total = torch.stack(scores).logsumexp(0)
        results.append((total, share / total.exp()))
    return results


def test_placements_are_those_of_counting_each() -> None:
    torch.manual_seed(1)
    ids, counts = [[1, 1, 1], [1, 1], []], [6, 4, 3]
    silence, tokens = torch.randn(3, 6).double(), torch.randn(3, 6, 3).double()
    nll, occupied, silent = placements(silence, tokens, torch.tensor(counts), torch.tensor([3, 2, 0]))
    for clip, (total, share) in enumerate(every_placement(counts[:2], ids[:2], silence, tokens)):
        torch.testing.assert_close(nll[clip], -total.float())
        torch.testing.assert_close(occupied[clip], share.float())
        torch.testing.assert_close(silent[clip, : counts[clip]], 1 - share[: counts[clip]].sum(1).float())
        assert not occupied[clip, counts[clip] :].any()
        assert not silent[clip, counts[clip] :].any()
    assert nll[2] == 0
    assert not occupied[2].any()
    assert not silent[2].any()


@pytest.mark.parametrize("tokens", [0, 20])
def test_the_gradient_is_that_of_the_likelihood_over_all_classes(
    embeddings: nn.Embedding, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Tokens beyond the first 20 count as classes of their own clip alone, a repeated one once."""
    monkeypatch.setattr(alignment, "DISTANCE", 0.0)
    ids, counts = [[5, 30, 30], [4], [30, 5]], [5, 4, 2]
    frames = (torch.randn(3, 5, HIDDEN) * 0.1).requires_grad_()
    sums = loss_over(embeddings, tokens)(frames, torch.tensor(counts), spoken(ids), embeddings)
    [gradient] = torch.autograd.grad(sums.loss, frames)

    table = embeddings.weight
    common = [SILENCE, *(token for token in range(tokens or VOCABULARY) if token != SILENCE)]
    scale = frame_classes.SHARPNESS / table[common].square().sum(1).mean()
    logits = scale * (frames @ table.T - table.square().sum(1) / 2)
    total = frames.new_zeros(())
    for clip, own in enumerate(ids):
        classes = sorted({*common, *own})
        scores = logits[clip].double() - logits[clip, :, classes].double().logsumexp(1, keepdim=True)
        [(likelihood, _)] = every_placement(counts[clip : clip + 1], [own], scores[None, :, SILENCE], scores[None][:, :, own])
        total = total - likelihood
    torch.testing.assert_close(sums.nll, total.float().detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(total, frames)[0], rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_distance_is_that_of_its_value(embeddings: nn.Embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one placement only, the loss is a likelihood and a distance, and autograd differentiates both."""
    for module in (alignment, frame_classes):
        monkeypatch.setattr(module, "SHARPNESS", 0.0)
    frames = torch.randn(1, 2, HIDDEN, requires_grad=True)
    sums = loss_over(embeddings)(frames, torch.tensor([2]), spoken([[7, 9]]), embeddings)
    [gradient] = torch.autograd.grad(sums.loss, frames)
    size = embeddings.weight.square().sum(1).mean()
    torch.testing.assert_close(gradient[0], 2 * alignment.DISTANCE / size * (frames[0] - embeddings.weight[[7, 9]]).detach())


def test_clips_are_computed_alone_and_useless_ones_do_not_count(embeddings: nn.Embedding) -> None:
    """A clip without tokens, or with more tokens than frames, adds nothing, however many clips are computed at once."""
    frames, counts = torch.randn(4, 5, HIDDEN), torch.tensor([5, 4, 2, 5])
    batch = spoken([[5, 3], [8], [4, 4, 4], []])

    def compute(chunk: int, clips: list[int]) -> tuple[AlignmentSums, Tensor]:
        own = frames[clips].requires_grad_()
        some = SimpleNamespace(spoken_ids=batch.spoken_ids[clips], spoken_lengths=batch.spoken_lengths[clips])
        sums = loss_over(embeddings, chunk=chunk)(own, counts[clips], some, embeddings)
        return sums, torch.autograd.grad(3 * sums.loss, own)[0]

    whole, gradient = compute(1024, [0, 1, 2, 3])
    assert whole.tokens == 3
    assert not gradient[2:].any()
    assert not gradient[1, 4:].any()
    for chunk in (1, 10):
        sums, other = compute(chunk, [0, 1, 2, 3])
        torch.testing.assert_close(sums, whole)
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-4)
    parts = [compute(1024, [clip])[0] for clip in range(4)]
    torch.testing.assert_close(torch.stack([part.nll for part in parts]).sum(), whole.nll)


def test_an_adapter_learns_to_say_the_tokens_without_the_llm(make_model: Callable[..., SpeechLLMModule], packed: Batch) -> None:
    model = make_model(loss=LossConfig(ce=1.0, kl=0.0, alignment=0.5))
    plain = model(packed)
    model.alignment = loss_over(model.llm.get_input_embeddings())
    both, alone = model(packed), model(packed, alignment_alone=True)
    sums = both.means["alignment"]
    assert sums[1] == packed.spoken_lengths.sum() > 0
    torch.testing.assert_close(alone.means["loss"], sums)
    torch.testing.assert_close(both.means["loss"], plain.means["loss"])  # `loss` stays that of the answers
    torch.testing.assert_close(both.loss, plain.loss + 0.5 * alone.loss)

    other = replace(packed, target_ids=packed.target_ids.flip(0), token_ids=packed.token_ids.flip(1))
    torch.testing.assert_close(model(other, alignment_alone=True).loss, alone.loss)
    parameters = list(model.trainable_parameters().values())
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        out = model(packed, alignment_alone=True)
        (out.loss / sums[1]).backward()
        optimizer.step()
    assert out.means["alignment"][0] < 0.2 * sums[0]


def test_clips_without_tokens_have_a_loss_of_zero(make_model: Callable[..., SpeechLLMModule], packed: Batch) -> None:
    model = make_model(loss=LossConfig(ce=1.0, kl=0.0))
    model.alignment = loss_over(model.llm.get_input_embeddings())
    out = model(replace(packed, spoken_lengths=torch.zeros_like(packed.spoken_lengths)), alignment_alone=True)
    out.loss.backward()
    assert out.loss == out.weight == 0
    assert all(not parameter.grad.any() for parameter in model.trainable_parameters().values())
