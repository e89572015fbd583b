"""Reading an LLM straight into ZeRO-3 partitions by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def loaded_weights_only() -> Iterator[None]:
    """For a while, transformers gives no random values to modules whose weights the checkpoint holds.

    Before reading a checkpoint, transformers 4.57 gives some of them random values that the checkpoint's then replace: those
    with a buffer beside their weights, such as Gemma 3's embedding. Partitioned weights cannot be filled (IndexError).
    """
    from transformers import PreTrainedModel

    before = PreTrainedModel._initialize_weights

    def initialise(model: Any, module: nn.Module, *arguments: Any) -> None:
        own = list(module.parameters(recurse=False))
        if not own or not all(getattr(parameter, "_is_hf_initialized", False) for parameter in own):
            before(model, module, *arguments)

    PreTrainedModel._initialize_weights = initialise  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = before  # type: ignore[method-assign]
