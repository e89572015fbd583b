"""The longest dialogue of a plan, before any of its rows is made: what an LLM's attention must reach over."""

from __future__ import annotations

import numpy as np

from mtbi.batches import interleave
from mtbi.batches.plan import Plan, chosen_tasks, take_hours


def longest_tokens(plan: Plan) -> int:
    """LLM positions of the longest dialogue that the plan may draw, adapter frames among them; at least 1.

    An upper bound: how much of an utterance is given as text is drawn anew in every epoch. No dialogue is longer than a row.
    """
    index = plan.index
    taken, tasks = take_hours(index, plan.config.hours, plan.seed), chosen_tasks(plan.config.tasks, index.tasks)
    rows = index.utterances if taken is None else index.utterances[taken]
    samples, counts = rows["samples"].astype(np.int64), rows["branches"].astype(np.int64)
    owner = np.repeat(np.arange(len(rows)), counts)
    places = np.arange(len(owner)) - interleave.starts_of(counts)[owner]
    branches = index.branches[rows["first_branch"].astype(np.int64)[owner] + places]
    fits = (samples <= plan.max_samples)[owner]
    if tasks is not None:
        fits &= tasks[branches["task"]]
    # The last answer token is predicted, never read.
    lengths = branches["prompt_tokens"].astype(np.int64) + branches["answer_tokens"] - 1
    if index.prompt_first:
        lengths += branches["lead_tokens"]
    lengths += len(index.prefix_ids) + _speech(plan, rows)[owner]
    return max(1, min(plan.config.row_tokens, int(lengths[fits].max(initial=1))))


def _speech(plan: Plan, rows: np.ndarray) -> np.ndarray:
    """Upper bounds (utterances,) of the positions of each utterance's speech, as sound or interleaved."""
    samples, words = rows["samples"].astype(np.int64), rows["words"].astype(np.int64)
    frames = np.asarray(plan.geometry.frames(samples), np.int64)
    if not plan.interleave.share or not words.any():
        return frames
    first = interleave.starts_of(words)
    owner = np.repeat(np.arange(len(rows)), words)
    table = plan.index.words[rows["first_word"].astype(np.int64)[owner] + np.arange(len(owner)) - first[owner]]
    begin = np.minimum(table["start"].astype(np.int64), samples[owner])
    end = np.append(begin[1:], 0)
    last = np.append(owner[1:] != owner[:-1], True)
    end[last] = samples[owner[last]]
    begin[first[words > 0]] = 0
    # Each word costs its text or its sound. Stretches of sound are rounded up, and a word of text lies between any two of them.
    as_text, as_sound = table["tokens"] + 2.0, np.maximum(0, end - begin) / plan.geometry.samples_per_frame
    mixed = np.bincount(owner, np.maximum(as_text, as_sound), minlength=len(rows)) + 2
    return np.where(words > 0, np.maximum(frames, np.ceil(mixed)), frames).astype(np.int64)
