"""What trains: its parts, the learning rate of each, and the size of the checkpoints that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mtbi.model.flops import count
from mtbi.recipe import TrainConfig

#: The parts in the order of the optimizer's groups, and how messages name them. `hidden` is the adapter below its output layer.
TITLES = {
    "adapter": "adapter", "encoder": "encoder", "hidden": "adapter", "encoder_lora": "encoder LoRA", "llm": "LLM layers",
    "llm_lora": "LLM LoRA", "new_tokens": "new tokens", "later_tokens": "later tokens",
}  # fmt: skip
#: The part whose learning rate a part has while it has none of its own (`train.PART_learning_rate`).
FALLBACKS = {
    "encoder": "adapter", "hidden": "adapter", "encoder_lora": "encoder", "llm_lora": "adapter", "new_tokens": "adapter",
    "later_tokens": "adapter",
}  # fmt: skip
PARAMETER_BYTES = 12  #: in a checkpoint: the parameter and Adam's two moments, float32
FURTHER_KEPT = 2  #: checkpoints beside the `train.keep_last` newest: the best, and the newest after a good step


def part_of(name: str) -> str:
    """The part that a trainable parameter of a SpeechLLMModule belongs to, by its name."""
    lora = "lora_" in name
    if name.startswith("encoder."):
        return "encoder_lora" if lora else "encoder"
    if name.startswith("adapter."):
        return "adapter" if ".output." in name else "hidden"
    if name.endswith(".new_rows"):
        return "new_tokens"
    if name.startswith("llm."):
        return "llm_lora" if lora else "llm"
    return "later_tokens"


def rate_of(part: str, train: TrainConfig) -> tuple[str, float]:
    """The part whose peak learning rate a part has, and this rate."""
    if part == "adapter":
        return part, train.learning_rate
    own = getattr(train, f"{part}_learning_rate", 0.0)
    return (part, own) if own or part not in FALLBACKS else rate_of(FALLBACKS[part], train)


def parameter_groups(parameters: Mapping[str, torch.nn.Parameter], train: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups from trainable parameters by name, one for each part with a learning rate of its own.

    A group's `rate_share` is its learning rate divided by `train.learning_rate`. `alignment_share` is the same in the steps on
    the alignment loss alone: all parts then have one rate. The LLM's own weights do not change in these steps, which do not run
    the LLM, and their norms and biases have no weight decay. In all other parts weight decay is of every parameter.
    """
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        part, _ = rate_of(part_of(name), train)
        vector = part == "llm" and len(getattr(parameter, "ds_shape", parameter.shape)) == 1
        groups.setdefault((part, vector), []).append(parameter)
    made = []
    for part, vector in sorted(groups, key=lambda key: (list(TITLES).index(key[0]), key[1])):
        share = rate_of(part, train)[1] / train.learning_rate
        options = {"rate_share": share, "alignment_share": 0.0 if part == "llm" else 1.0}
        made.append({"params": groups[part, vector], **options, **({"weight_decay": 0.0} if vector else {})})
    return made


@dataclass(frozen=True)
class CheckpointSize:
    """What a checkpoint holds, and how large it gets."""

    parts: dict[str, int]  #: numbers of parameters, by the part's title
    kept: int  #: the most checkpoints in a run's folder at one time

    @classmethod
    def of(cls, parts: Mapping[str, int], train: TrainConfig) -> CheckpointSize:
        """Of the parts that train. Parts without a parameter are left out."""
        return cls({title: number for title, number in parts.items() if number}, train.keep_last + FURTHER_KEPT)

    @property
    def bytes(self) -> int:
        """Of one checkpoint, without its few kilobytes of JSON."""
        return PARAMETER_BYTES * sum(self.parts.values())

    @property
    def folder_bytes(self) -> int:
        """The most that a run's checkpoints take: all that are kept, and the one that is being written."""
        return (self.kept + 1) * self.bytes

    def __str__(self) -> str:
        held = ", ".join(f"{title} {in_words(number)}" for title, number in self.parts.items())
        size, folder = in_bytes(self.bytes), in_bytes(self.folder_bytes)
        return f"{size} each ({held}; float32, with Adam's moments), up to {self.kept} kept, so up to {folder} on the disk"


def counts(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> dict[str, int]:
    """Numbers of parameters by the title of their part, from trainable parameters by name."""
    found = dict.fromkeys(TITLES.values(), 0)
    for name, parameter in parameters:
        found[TITLES[part_of(name)]] += count([parameter])
    return found


def difference(before: Iterable[str], now: Iterable[str]) -> str:
    """Which parts only one of two sets of trainable parameters has, in words; empty where both have the same parts."""
    old, new = ({TITLES[part_of(name)] for name in names} for names in (before, now))
    lines = [
        (old - new, "the checkpoint trains {}, and the recipe does not"),
        (new - old, "the recipe trains {}, and the checkpoint does not"),
    ]
    return "; ".join(line.format(" and ".join(sorted(parts))) for parts, line in lines if parts)


def in_words(number: int) -> str:
    """A number of parameters, such as 50.3 M."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,}"


def in_bytes(number: int) -> str:
    """A size on disk, such as 2.1 GB (1 GB = 1e9 bytes)."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
