"""A trial of packed rows through an LLM's architecture without its weights: two narrow layers of random numbers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from mtbi.llm import attention, back_end
from mtbi.llm.last_layer import LastLayer
from mtbi.model import self_test

VOCABULARY = 128
NARROW = {"intermediate_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
WINDOW = 4  #: tokens, shorter than the dialogues of the trial
SPREAD = 0.2  #: standard deviation of the random weights: so large that every part of the model matters


def shrunk(config: Any) -> Any:
    """The text model's configuration with two layers, a few tokens, narrow feed-forward layers and short windows."""
    small = deepcopy(config.get_text_config())
    lists = [name for name in back_end.LAYER_LISTS if isinstance(getattr(small, name, None), list)]
    for name in lists:
        kinds = list(dict.fromkeys(getattr(small, name)))
        setattr(small, name, (kinds * 2)[:2])
    changes: dict[str, Any] = {"num_hidden_layers": 2, "vocab_size": VOCABULARY, "initializer_range": SPREAD, **NARROW}
    changes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    if back_end.LLMShape.of(small).window:
        changes["sliding_window"] = WINDOW
    for name, value in changes.items():
        if hasattr(small, name):
            setattr(small, name, value)
    return small


def try_packed_row(config: Any, chosen: str, name: str) -> str:
    """Compute a packed row in float32 on the CPU by a miniature of the LLM `config`, which `name` names. Returns the finding.

    `chosen` is the recipe's `model.attention`. Short windows, which flash does not have, are tried with dense. Raises UserError
    if the row differs from its dialogues computed alone. A model that cannot be shrunk is tried when training starts.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    try:
        small = shrunk(config)
        used = "dense" if chosen == "flash" and back_end.LLMShape.of(small).window else chosen
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            llm = AutoModelForCausalLM.from_config(small, attn_implementation=back_end.NAMES[used], dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        return f"a packed row was not tried ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
    back_end.check_model(llm)
    LastLayer(llm)
    self_test.check(llm, name)
    return "a packed row through two layers of random weights is its dialogues alone"
