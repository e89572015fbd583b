"""The longest dialogue of a plan, before any row is made: the LLM's attention must reach over it."""

from __future__ import annotations

import numpy as np

from mtbi.batches.draw import branch_entries, dialogue_tokens, word_entries
from mtbi.batches.interleave import starts_of
from mtbi.batches.plan import Plan, chosen_tasks, take_hours
from mtbi.shards.index import around_tokens


def longest_tokens(plan: Plan) -> int:
    """LLM positions of the longest dialogue that the plan may draw, adapter frames among them; at least 1.

    This is an upper bound, because each epoch draws anew how much of an utterance is text. No dialogue is longer than a row.
    """
    index = plan.index
    taken, tasks = take_hours(index, plan.config.hours, plan.seed), chosen_tasks(plan.config.tasks, index.tasks)
    rows = index.utterances if taken is None else index.utterances[taken]
    owner, _, entries = branch_entries(index, rows)
    fits = (rows["samples"] <= plan.max_samples)[owner]
    if tasks is not None:
        fits &= tasks[entries["task"]]
    lengths = dialogue_tokens(index, entries) + len(index.prefix_ids) + most_speech_tokens(plan, rows)[owner]
    return max(1, min(plan.config.row_tokens, int(lengths[fits].max(initial=1))))


def most_speech_tokens(plan: Plan, rows: np.ndarray) -> np.ndarray:
    """Upper bounds (utterances,) of the positions of each utterance, as sound or interleaved, with the text around it."""
    samples, words = rows["samples"].astype(np.int64), rows["words"].astype(np.int64)
    frames = np.asarray(plan.geometry.frames(samples), np.int64)
    owner, entries = word_entries(plan.index, rows)
    text = np.bincount(owner, entries["tokens"], minlength=len(rows)).astype(np.int64)
    around = around_tokens(rows)
    whole = np.where(samples > 0, frames, text) + around  # an utterance without sound is all text
    if not plan.interleave.share or not words.any():
        return whole
    if not plan.geometry.follows_time:  # each stretch of sound is a clip, and there is a word of text between any two
        mixed = text + frames * ((words + 1) // 2) + around
        return np.where((words > 0) & (samples > 0), np.maximum(whole, mixed), whole)
    begin = np.minimum(entries["start"].astype(np.int64), samples[owner])
    end = np.append(begin[1:], 0)
    is_last = np.append(owner[1:] != owner[:-1], True)
    end[is_last] = samples[owner[is_last]]
    begin[starts_of(words)[words > 0]] = 0
    # Each word takes the positions of its text or of its sound. Every stretch of sound is rounded up. There is a word of text
    # between any two stretches, so the two positions that are added to each text word cover the rounding.
    as_text, as_sound = entries["tokens"] + 2.0, np.maximum(0, end - begin) / plan.geometry.samples_per_frame
    mixed = np.bincount(owner, np.maximum(as_text, as_sound), minlength=len(rows)) + around + 2
    return np.where((words > 0) & (samples > 0), np.maximum(whole, np.ceil(mixed)), whole).astype(np.int64)
