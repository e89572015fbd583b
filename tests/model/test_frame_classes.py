"""What adapter frames say, and what the LLM does not read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtbi.batches.batch import Batch
from mtbi.batches.compact import without
from mtbi.model.frame_classes import FrameClasses, SilenceFilter
from mtbi.model.generate import answer_logits, embed_prompts
from mtbi.model.speech_llm import SpeechLLMModule

VOCABULARY, HIDDEN, SILENCE = 40, 16, 2


@pytest.fixture
def table() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY, HIDDEN).requires_grad_(False)


def filter_of(embed: Callable[[Tensor], Tensor], vocabulary: int, tokens: int = 0) -> SilenceFilter:
    return SilenceFilter(FrameClasses(embed, torch.arange(vocabulary), [SILENCE], tokens), 0.5)


@pytest.mark.parametrize("tokens", [0, 20])
def test_the_embedding_of_silence_is_silent_and_those_of_other_tokens_are_not(table: nn.Embedding, tokens: int) -> None:
    own = filter_of(table, VOCABULARY, tokens)
    assert len(own.classes.embeddings) == (tokens or VOCABULARY)
    frames = table.weight[: tokens or VOCABULARY] + 0.01
    assert own.silent(frames).nonzero().tolist() == [[SILENCE]]
    assert own.silent(frames[:0]).shape == (0,)


def test_many_frames_are_computed_as_few_are(table: nn.Embedding) -> None:
    own, frames = filter_of(table, VOCABULARY), table.weight[SILENCE] + torch.randn(3000, HIDDEN)
    silent = own.silent(frames)
    assert 0 < silent.sum() < 3000
    assert torch.equal(silent, torch.cat([own.silent(part) for part in frames.split(100)]))


@pytest.fixture
def filtering(make_model: Callable[..., SpeechLLMModule], packed: Batch) -> SpeechLLMModule:
    """A model whose LLM does not read about half of the frames."""
    model = make_model()
    classes = FrameClasses(model.embed, torch.arange(61), [3])
    classes.size *= 100  # random frames are far from all embeddings: softer probabilities
    frames, _ = model.encode_clips(
        packed.waveforms, packed.waveform_lengths, packed.features, packed.feature_lengths, packed.masked_frames,
        packed.masked_channels,
    )  # fmt: skip
    heard = frames[packed.audio_clip, packed.audio_frame].detach()
    model.filter = SilenceFilter(classes, float(classes.logits(heard).softmax(1)[:, 0].median()))
    return model


def test_the_llm_does_not_read_silence_in_training(
    make_model: Callable[..., SpeechLLMModule], filtering: SpeechLLMModule, packed: Batch
) -> None:
    out, plain = filtering(packed), make_model()
    silent, count = out.means["silence"].tolist()
    assert count == len(packed.audio_slot)
    assert 0.4 < silent / count < 0.6
    frames, _ = plain.encode_speech(packed.waveforms, packed.waveform_lengths)
    assert filtering.filter
    expected = plain(without(packed, filtering.filter.silent(frames[packed.audio_clip, packed.audio_frame])))
    torch.testing.assert_close(out.loss, expected.loss)
    assert not torch.isclose(out.loss, plain(packed).loss)
    out.loss.backward()
    assert all(value.grad is not None and value.grad.norm() > 0 for value in filtering.trainable_parameters().values())


def test_the_llm_reads_the_same_in_use(filtering: SpeechLLMModule, packed: Batch) -> None:
    """The logits of a packed dialogue are those of a single one, as `mtbi evaluate` asks for it."""
    group, branch, ids = packed.group.flatten(), packed.branch.flatten(), packed.token_ids.flatten()
    own = (packed.target_slot < packed.group.shape[1]) & (group[packed.target_slot] == 0) & (branch[packed.target_slot] == 1)
    [sound] = (packed.audio_clip == 0).nonzero(as_tuple=True)
    first, last = int(packed.audio_slot[sound[0]]), int(packed.audio_slot[sound[-1]])
    [asked] = ((group == 0) & (branch == 1)).nonzero(as_tuple=True)
    asked = asked[asked <= packed.target_slot[own][0]]
    wave = packed.waveforms[0, : packed.waveform_lengths[0]].numpy()
    prompt = [ids[:first], wave, torch.cat([ids[last + 1 : last + 2], ids[asked]])]
    seen: list[Tensor] = []
    filtering.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    filtering.eval()(packed)
    [logits] = answer_logits(filtering, [prompt], [packed.target_ids[own].tolist()])
    torch.testing.assert_close(logits, filtering.head.logits(seen[0][own]), rtol=1e-5, atol=1e-5)
    _, mask = embed_prompts(filtering, [prompt])
    assert 2 < int(mask.sum()) < last + 1 + len(asked)
