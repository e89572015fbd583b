from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from mtbi.model.word_times.attention import CrossAttention, evidence, median_filter


def test_the_recorded_weights_are_those_of_transformers(tiny_whisper: Path) -> None:
    model: Any = WhisperForConditionalGeneration.from_pretrained(tiny_whisper, attn_implementation="eager").eval()
    heads = [(1, 0), (0, 1)]
    attention = CrossAttention(model.get_decoder(), heads)
    ids, sound = torch.arange(12).reshape(2, 6), torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"input_ids": ids, "encoder_hidden_states": sound, "use_cache": False}
    with torch.no_grad():
        whole = model.get_decoder()(**call, output_attentions=True).cross_attentions
        model.set_attn_implementation("sdpa")  # which returns no weights
        with attention.recorded():
            model.get_decoder()(**call)
            recorded = attention.weights(1, slice(2, 6), frames=15)
    for own, (layer, head) in zip(recorded, sorted(heads), strict=True):
        wanted = whole[layer][1, head, 2:6, :15]
        torch.testing.assert_close(own, wanted / wanted.sum(-1, keepdim=True))
    with pytest.raises(KeyError):
        attention.weights(0, slice(0, 1), frames=1)


def test_the_median_of_seven_neighbours() -> None:
    values = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    reflected = np.pad(values.numpy(), ((0, 0), (0, 0), (3, 3)), mode="reflect")
    wanted = np.stack([np.median(reflected[..., frame : frame + 7], axis=-1) for frame in range(20)], axis=-1)
    np.testing.assert_array_equal(median_filter(values).numpy(), wanted)
    assert median_filter(values[..., :3]) is not None


def test_evidence_is_high_where_one_token_alone_attends() -> None:
    weights = torch.full((2, 3, 30), 0.01)
    for token in range(3):
        weights[:, token, 10 * token : 10 * token + 10] = 0.1
    assert evidence(weights).argmax(0).tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert evidence(weights[:, :1]).isfinite().all()  # one token has no deviation
