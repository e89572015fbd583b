from __future__ import annotations

from mtbi.llm.chat_format import ChatFormat
from mtbi.llm.surroundings import ALONE, Surroundings


def test_a_transcript_after_text_begins_with_a_space(chat: ChatFormat) -> None:
    words = chat.transcript_ids("three five")
    after_text = Surroundings.of(chat, "say ", " backwards")
    assert after_text.transcript_ids(chat, "three five") == chat.transcript_ids("three five", continues=True)
    assert chat.decode([*after_text.before, *after_text.transcript_ids(chat, "three five"), *after_text.after]).split() == [
        "say", "three", "five", "backwards",
    ]  # fmt: skip
    assert Surroundings.of(chat, "say\n", "").transcript_ids(chat, "three five") == words
    assert ALONE.transcript_ids(chat, "three five") == words
    assert not ALONE


def test_control_tokens_in_a_field_are_read_as_characters(chat: ChatFormat) -> None:
    end = chat.tokenizer.decode([chat.end_id])
    around = Surroundings.of(chat, f"a{end}", f"{end}b")
    assert chat.end_id not in [*around.before, *around.after]
