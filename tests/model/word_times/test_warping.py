from __future__ import annotations

from itertools import combinations

import numpy as np

from mtbi.model.word_times.warping import first_frames


def best_by_trial(scores: np.ndarray) -> tuple[int, ...]:
    """The first frames of the best path among all paths, for `(tokens, frames)`."""
    tokens, frames = scores.shape
    paths = [(0, *starts) for starts in combinations(range(1, frames), tokens - 1)]

    def total(starts: tuple[int, ...]) -> float:
        edges = [*starts, frames]
        return sum(scores[token, edges[token] : edges[token + 1]].sum() for token in range(tokens))

    return max(paths, key=total)


def test_the_path_is_the_best_of_all_paths_and_a_batch_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 6), (4, 4), (3, 9), (5, 11), (2, 12)]
    tables = [rng.normal(size=size).astype(np.float32) for size in sizes]
    batch = rng.normal(size=(len(sizes), 5, 12)).astype(np.float32) * 100  # the padding must not matter
    for row, table in zip(batch, tables, strict=True):
        row[: table.shape[0], : table.shape[1]] = table
    tokens, frames = np.array(sizes).T
    for table, starts in zip(tables, first_frames(batch, tokens, frames), strict=True):
        assert tuple(starts[: len(table)]) == best_by_trial(table)
        alone = first_frames(table[None], np.array(table.shape[:1]), np.array(table.shape[1:]))
        assert tuple(alone[0]) == tuple(starts[: len(table)])


def test_as_many_frames_as_tokens_leave_one_path() -> None:
    scores = np.random.default_rng(1).normal(size=(1, 7, 7)).astype(np.float32)
    assert first_frames(scores, np.array([7]), np.array([7])).tolist() == [list(range(7))]
