from __future__ import annotations

from pathlib import Path

import pytest

from mtbi import files


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "first")

    def fail() -> None:
        with files.whole(path) as temporary:
            temporary.write_text("half of the sec")
            assert path.read_text() == "first"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.json", "first")]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with files.whole(path) as one, files.whole(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert len(list(tmp_path.iterdir())) == 1
