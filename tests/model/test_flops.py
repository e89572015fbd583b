"""The operations that a step is said to take are those that it takes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtbi.llm import trained_layers
from mtbi.model.flops import LLMSize


@pytest.mark.parametrize("trainable", ["none", "all", "last 1"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_llms_matrix_products_are_counted(make_model, packed, kind, trainable):
    model = make_model(kind)
    trained_layers.set_trainable(model.llm, trainable)
    with FlopCounterMode(display=False) as heard:  # all that is not the LLM
        frames, _ = model.encode_speech(packed.waveforms, packed.waveform_lengths)
        frames.sum().backward()
    with FlopCounterMode(display=False) as counter:
        model(packed).loss.backward()
    products = (torch.ops.aten.mm, torch.ops.aten.addmm)
    whole, beside = (sum(one.get_flop_counts()["Global"].get(name, 0) for name in products) for one in (counter, heard))
    expected = LLMSize.of(model.llm).computed_flops(packed.token_ids.numel(), len(packed.target_slot))
    assert whole - beside == pytest.approx(expected, rel=0.02)  # norms have parameters too


def test_tied_embeddings_are_counted_once(make_model):
    llm = make_model("gemma3").llm
    assert llm.get_input_embeddings().weight is llm.get_output_embeddings().weight
    found = LLMSize.of(llm)
    assert found.all == sum(parameter.numel() for parameter in llm.parameters()) == found.per_token + found.per_answer
