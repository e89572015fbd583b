"""A training step asks the GPU for no value: the host would wait for it, and the GPU then for the host.

Tensors of the device `meta` have no values, so that asking for one is an error. Whatever computes them on a GPU runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import transformers

from mtbi.batches.batch import Batch
from mtbi.engine.sums import Sums
from mtbi.llm import attention
from mtbi.model.speech_llm import SpeechLLMModule

META = torch.device("meta")
Make = Callable[..., SpeechLLMModule]


def step(model: SpeechLLMModule, batch: Batch) -> Sums:
    """Forward pass, sums and backward pass of a micro-batch, as in `mtbi.engine.engine`."""
    total = Sums(META)
    out = model.train()(batch)
    finite = total.add(out)
    for parameter in model.trainable_parameters().values():
        parameter.register_hook(lambda gradient: torch.where(finite, gradient, 0))
    out.loss.backward()
    return total


@pytest.mark.skipif(transformers.__version__ < "5", reason="rotary positions of transformers 4 do not run on the device `meta`")
@pytest.mark.parametrize("back_end", [attention.FLASH, attention.DENSE])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_micro_batch_asks_the_gpu_for_no_value(make_model: Make, packed: Batch, kind: str, back_end: str) -> None:
    model = make_model(kind, back_end).to(META)
    total = step(model, packed.to(META))
    step(model, packed.to(META).clips_alone())
    assert {mean.device for mean in total.means.values()} == {META}
    assert all(parameter.grad is not None for parameter in model.trainable_parameters().values())


@pytest.mark.parametrize("back_end", [attention.FLASH, attention.DENSE])
def test_without_the_batch_on_the_host_it_would_have_to(make_model: Make, packed: Batch, back_end: str) -> None:
    batch = replace(packed.to(META))  # such as one that the model has changed
    assert batch.on_host is None
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        step(make_model("llama", back_end).to(META), batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("back_end", [attention.FLASH, attention.FLEX])
def test_on_a_gpu_nothing_waits_for_it(make_model: Make, packed: Batch, back_end: str) -> None:
    from mtbi.batches.transfer import PackedBatch

    device = torch.device("cuda", torch.cuda.current_device())
    model = make_model("llama", back_end).to(device)
    model.bfloat16()
    ready = PackedBatch.of(packed)
    for mode in ("default", "error"):  # kernels are compiled and memory is reserved in the first pass
        torch.cuda.set_sync_debug_mode(mode)
        try:
            out = model.train()(ready.to(device))
            torch.where(torch.isfinite(out.loss.detach()), out.loss, 0).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.grad is not None for parameter in model.trainable_parameters().values())
