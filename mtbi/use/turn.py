"""A user's turn: which text of a message is the prompt, and the order in which the model reads speech and prompt.

The conversation, the server, mixes of speech and text, and Python's `ask` all lay out a turn by these two functions. The
chat template of an export (`mtbi.use.export`) does the same in Jinja. Tests compare all of them with training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtbi import text_units
from mtbi.llm.chat_format import ChatFormat

#: A part of a message: text, or a waveform `(samples,)` at 16 kHz.
MessagePart = str | np.ndarray


def split_prompt(parts: Sequence[MessagePart]) -> tuple[list[MessagePart], str]:
    """The speech of a message with the text that belongs to it, and the prompt about it.

    The text after the last recording is the prompt. If there is none, the text before the first recording is the prompt. All
    other text stays in its position among the recordings, as if it had been spoken. A message without recordings is a prompt.
    """
    filled = [part for part in parts if isinstance(part, np.ndarray) or part.strip()]
    recordings = [index for index, part in enumerate(filled) if isinstance(part, np.ndarray)]
    if not recordings:
        return [], join_texts(filled)
    first, stop = recordings[0], recordings[-1] + 1
    if len(filled) > stop:
        return filled[:stop], join_texts(filled[stop:])
    return filled[first:], join_texts(filled[:first])


def join_texts(parts: Sequence[MessagePart]) -> str:
    """The texts among the parts, with a space between them."""
    return " ".join(part for part in parts if isinstance(part, str))


def user_turn(
    chat: ChatFormat, opening: list[int], said: Sequence[MessagePart], prompt: str, prompt_first: bool
) -> list[Tensor | np.ndarray]:
    """A user's turn up to the first token of the answer: token ids `(tokens,)` and waveforms `(samples,)`, in order.

    `opening` are the token ids before the user's first word: `chat.prefix_ids`, or `chat.opening_ids` for a later turn.
    With `prompt_first` the prompt comes before `said`. If `said` is empty, the prompt is the whole message.
    """
    prompt = prompt.strip()
    said = [part for part in said if isinstance(part, np.ndarray) or text_units.units(part)]
    if not said:
        return [torch.tensor(ids) for ids in (opening, chat.plain_ids(prompt), chat.suffix_ids(""))]
    lead, closing = chat.around_speech(prompt, prompt_first)
    pieces: list[Tensor | np.ndarray] = [torch.tensor([*opening, *lead])]
    for index, part in enumerate(said):
        if isinstance(part, np.ndarray):
            pieces.append(part)
        else:
            words = chat.word_ids(text_units.units(part), continues=index > 0)
            pieces.append(torch.tensor([token for ids in words for token in ids]))
    return [*pieces, torch.tensor(closing)]
