from __future__ import annotations

import numpy as np
import pytest

from mtbi.engine import digest
from mtbi.shards.index import BRANCH, WORD

TABLE = np.array([(start, start + 5, start % 3) for start in range(1000)], WORD)


def test_each_column_and_its_order_count() -> None:
    before = digest.of_table(TABLE)
    assert set(before) == set(WORD.names or ())
    changed = TABLE.copy()
    changed["end"][[3, 4]] = changed["end"][[4, 3]]
    after = digest.of_table(changed)
    assert [name for name in before if before[name] != after[name]] == ["end"]
    assert digest.of_table(TABLE[:-1])["tokens"] != before["tokens"]
    assert digest.of_table(np.zeros(0, BRANCH))  # shards without words have such a table


def test_a_large_table_is_sampled_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "BLOCK_ROWS", 10)
    monkeypatch.setattr(digest, "WHOLE_BYTES", TABLE.nbytes // 10)
    before = digest.of_table(TABLE)
    for row, seen in ((0, True), (50, False), (105, True), (999, True)):
        changed = TABLE.copy()
        changed["start"][row] += 1
        assert (digest.of_table(changed) != before) is seen
