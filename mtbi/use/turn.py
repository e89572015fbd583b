"""A user's turn: which text is the prompt, and token ids and waveforms in the order in which the run was trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtbi import text_units
from mtbi.llm.chat_format import ChatFormat


def split_prompt(pieces: Sequence[str | np.ndarray]) -> tuple[list[str | np.ndarray], str]:
    """What is said, and the prompt about it, of a message of texts and recordings in order.

    The text after the last recording is the prompt. Where there is none, the text before the first recording is. All other
    text is read in its place as if it had been heard. A message without recordings is a prompt.
    """
    found = [piece for piece in pieces if isinstance(piece, np.ndarray) or piece.strip()]
    heard = [place for place, piece in enumerate(found) if isinstance(piece, np.ndarray)]
    if not heard:
        return [], joined(found)
    first, stop = heard[0], heard[-1] + 1
    return (found[:stop], joined(found[stop:])) if len(found) > stop else (found[first:], joined(found[:first]))


def joined(texts: Sequence[str | np.ndarray]) -> str:
    """Texts as one."""
    return " ".join(text for text in texts if isinstance(text, str))


def user_turn(
    chat: ChatFormat, opening: list[int], said: Sequence[str | np.ndarray], prompt: str, prompt_first: bool
) -> list[Tensor | np.ndarray]:
    """A user's turn to the opening of the answer: token ids `(tokens,)` and waveforms `(samples,)`.

    `opening` is everything before the user's first word: `chat.prefix_ids`, or `chat.opening_ids` for a further turn.
    With `prompt_first` the prompt stands before what is said. Where nothing is said the prompt is the whole message.
    """
    prompt = prompt.strip()
    said = [piece for piece in said if isinstance(piece, np.ndarray) or text_units.units(piece)]
    if not said:
        return [torch.tensor(part) for part in (opening, chat.plain_ids(prompt), chat.suffix_ids(""))]
    lead, closing = chat.around_speech(prompt, prompt_first)
    parts: list[Tensor | np.ndarray] = [torch.tensor([*opening, *lead])]
    for place, piece in enumerate(said):
        if isinstance(piece, np.ndarray):
            parts.append(piece)
        else:
            words = chat.word_ids(text_units.units(piece), continues=place > 0)
            parts.append(torch.tensor([token for ids in words for token in ids]))
    return [*parts, torch.tensor(closing)]
