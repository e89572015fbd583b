"""A fix for transformers: loading an LLM straight into ZeRO-3 partitions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def loaded_weights_only() -> Iterator[None]:
    """A context in which transformers initialises no module whose weights the checkpoint holds.

    Before loading, transformers 4.57 initialises modules that have a buffer beside their weights, such as Gemma 3's embedding.
    Partitioned weights cannot be initialised (IndexError), and the checkpoint would replace the values anyway.
    """
    from transformers import PreTrainedModel

    before = PreTrainedModel._initialize_weights

    def initialise(model: Any, module: nn.Module, *arguments: Any) -> None:
        own = list(module.parameters(recurse=False))
        if not own or not all(getattr(parameter, "_is_hf_initialized", False) for parameter in own):
            before(model, module, *arguments)

    PreTrainedModel._initialize_weights = initialise  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = before  # type: ignore[method-assign, assignment]
