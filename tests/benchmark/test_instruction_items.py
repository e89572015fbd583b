from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mtbi.benchmark.instruction_items import INSTRUCTIONS, longest_words, make_items, write_items
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.metrics.instructions import CHECKS, check_names

UTTERANCES = [Utterance(f"u{n}", f"audio/{n}.wav", "the old lighthouse stood there", "s", 1.0) for n in range(28)]


def test_all_instructions_are_asked_and_can_be_checked(tmp_path: Path) -> None:
    items = list(make_items(UTTERANCES, tmp_path))
    asked = Counter(item["instruction_id_list"][0] for item in items)
    assert asked == Counter({name: 2 * sum(i.name == name for i in INSTRUCTIONS) for name in {i.name for i in INSTRUCTIONS}})
    assert set(asked) <= set(CHECKS)
    for item in items:
        check_names(item["instruction_id_list"], item["kwargs"])
        assert "{" not in item["instruction"]
        for value in item["kwargs"][0].values():
            assert str(value[0] if isinstance(value, list) else value) in item["instruction"]
    assert {item["id"] for item in items} == {utterance.id for utterance in UTTERANCES}
    assert items == list(make_items(UTTERANCES, tmp_path))


def test_audio_paths_start_at_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "items.jsonl"
    assert write_items(UTTERANCES[:2], tmp_path / "work", out) == 2
    paths = {json.loads(line)["audio"] for line in out.read_text().splitlines()}
    assert paths == {str(tmp_path / "work" / "audio" / f"{number}.wav") for number in range(2)}
    with pytest.raises(UserError, match="nothing to ask about"):
        write_items([Utterance("t", "", "text alone")], tmp_path, out)


def test_the_longest_words_are_chosen_for_keywords() -> None:
    assert longest_words("The old lighthouse, the lighthouse!", 2) == ["lighthouse", "the"]
    assert longest_words("…") == ["speech"]
