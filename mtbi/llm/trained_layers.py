"""Which of the LLM's own weights train (`model.llm_trainable`): whole decoder layers, with their norms, and nothing else.

The embeddings, the final norm and the output layer stay frozen. The solved start and the alignment loss copy the embeddings of
the words before the first step. New tokens have trainable rows beside the frozen ones (`mtbi.model.new_rows`). In a tied LLM
both tables are one, and a step of the loss would move the embedding of every word.
"""

from __future__ import annotations

import re
from typing import Any

from mtbi.errors import UserError
from mtbi.llm import back_end
from mtbi.llm.last_layer import decoder_layers
from mtbi.recipe import ModelConfig

NONE, ALL = "none", "all"


def numbers(choice: str, layers: int) -> list[int]:
    """The numbers of the layers that train, from 0, of an LLM with so many layers.

    `choice` is `none`, `all`, `last N`, or numbers and ranges such as `0-3,30`. Raises UserError for anything else, and for a
    layer that the LLM lacks.
    """
    if choice in (NONE, ALL):
        return list(range(layers)) if choice == ALL else []
    if last := re.fullmatch(r"last (\d+)", choice):
        chosen = list(range(layers - int(last[1]), layers))
    elif re.fullmatch(r"\d+(-\d+)?(, ?\d+(-\d+)?)*", choice):
        ends = [part.partition("-") for part in choice.replace(" ", "").split(",")]
        chosen = sorted({n for first, _, last in ends for n in range(int(first), int(last or first) + 1)})
    else:
        chosen = []
    if not chosen:
        raise UserError(f"model.llm_trainable is {choice!r}: write `none`, `all`, `last 4`, or numbers such as 0-3,30")
    if chosen[0] < 0 or chosen[-1] >= layers:
        raise UserError(f"model.llm_trainable is {choice!r}, but the LLM has {layers} layers, numbered from 0")
    return chosen


def check(model: ModelConfig) -> None:
    """Raises UserError where the recipe chooses layers that its LLM lacks. No weights are read."""
    if model.llm_trainable != NONE:
        numbers(model.llm_trainable, back_end.read_config(model).get_text_config().num_hidden_layers)


def set_trainable(llm: Any, choice: str) -> None:
    """Let the chosen layers of an LLM of transformers train, and freeze all else, in place. Raises UserError as `numbers`."""
    llm.requires_grad_(False)
    if choice == NONE:
        return
    layers = decoder_layers(llm)
    for number in numbers(choice, len(layers)):
        layers[number].requires_grad_(True)
