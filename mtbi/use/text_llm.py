"""The text LLM inside a trained run: the LLM as it was before speech training, for comparison with the speech LLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from mtbi.llm.load import load_llm
from mtbi.llm.trained_layers import NONE
from mtbi.recipe import LoraConfig, in_use
from mtbi.use.open_run import TrainedRun


class TextLLM:
    """Turns the LLM of a run back into the one from before training, for as long as a context is open."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run

    @property
    def changed(self) -> bool:
        """Whether training changed the LLM: its own weights, or by low-rank updates."""
        return bool(self.trained) or any("lora_" in name for name, _ in self.run.model.llm.named_parameters())

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The LLM's own weights that were trained, by their names in the LLM that is not."""
        named = self.run.model.llm.named_parameters()
        own = ((name, value) for name, value in named if value.requires_grad and "lora_" not in name)
        return {name.replace(".base_layer", ""): value for name, value in own if not name.endswith(".new_rows")}

    @cached_property
    def other_weights(self) -> dict[str, Tensor]:
        """What `trained` holds in the other of the two LLMs, on the CPU. The LLM is read once more, if any of it was trained.

        Raises UserError where it cannot be read.
        """
        if not self.trained:
            return {}
        model = replace(in_use(self.run.recipe.model), llm_trainable=NONE, llm_lora=LoraConfig())
        before = dict(load_llm(model, self.run.model.dtype, torch.device("cpu")).named_parameters())
        return {name: before[name].detach().clone() for name in self.trained}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """A context in which the run's LLM has no low-rank updates, and its own weights from before training."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.run.model.llm.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        self._exchange()
        try:
            yield
        finally:
            self._exchange()
            for layer in layers:
                layer.enable_adapters(True)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.trained.items():
            current = parameter.to("cpu", copy=True)
            parameter.copy_(self.other_weights[name])
            self.other_weights[name] = current
