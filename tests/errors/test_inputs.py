"""Wrong inputs: recipes, manifests and recordings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from errors.case import Case, both, file, folder, lines, tone

GOOD = {"id": "a", "audio": "a.wav", "text": "one two three"}

RECIPES = [
    Case("unknown recipe", "recipe show demmo", ("no recipe is called 'demmo'", "did you mean demo?", ".yaml file")),
    Case(
        "unknown key in the base of a recipe",
        "plan mine.yaml",
        ("base.yaml: unknown key 'plan.row_token'", "did you mean plan.row_tokens?"),
        both(file("mine.yaml", "base: base.yaml"), file("base.yaml", "plan: {row_token: 5}")),
    ),
    Case(
        "wrong type in a recipe",
        "behave $corpus out --recipe mine.yaml",
        ("mine.yaml: behaviour.top_k must be a whole number, not 'many'",),
        file("mine.yaml", "behaviour: {top_k: many}"),
    ),
    Case(
        "bad YAML", "doctor mine.yaml", ("mine.yaml: not readable as YAML", "line 2"), file("mine.yaml", "train:\n\tsteps: 5")
    ),
    Case(
        "circular base",
        "data shard $corpus $answers out --recipe a.yaml",
        ("`base` goes round in a circle", "a.yaml → ", "b.yaml"),
        both(file("a.yaml", "base: b.yaml"), file("b.yaml", "base: a.yaml")),
    ),
    Case(
        "unknown base",
        "recipe show mine.yaml",
        ("mine.yaml: base: no recipe is called 'whisper'", "whisper-large-v3_qwen3-8b"),
        file("mine.yaml", "base: whisper"),
    ),
    Case(
        "contradictory values",
        "plan mine.yaml interleave.text_share_max=0.2",
        ("text_share_min (0.5) is more than interleave.text_share_max (0.2)",),
        file("mine.yaml", "base: demo\ninterleave: {text_share_min: 0.5}"),
    ),
    Case("a folder as recipe", "recipe show mine.yaml", ("mine.yaml: no such recipe file",), folder("mine.yaml")),
    Case("an override without =", "plan demo train.steps", ("'train.steps'", "key=value", "train.steps=100")),
]
MANIFESTS = [
    Case("missing manifest", "data check gone.jsonl", ("gone.jsonl: the manifest cannot be read (No such file",)),
    Case("a folder as manifest", "behave m.jsonl out", ("m.jsonl: the manifest cannot be read (Is a dir",), folder("m.jsonl")),
    Case(
        "bad JSON line",
        "data stats m.jsonl",
        ("m.jsonl: 1 bad line(s)", "m.jsonl:2: not JSON: line 2", "`mtbi data import jsonl m.jsonl OUT`"),
        lines("m.jsonl", GOOD, "{oops"),
    ),
    Case(
        "duplicate id",
        "behave m.jsonl out",
        ("id used before: line 2 of m.jsonl repeats 'a'", "mtbi data import"),
        lines("m.jsonl", GOOD, GOOD),
    ),
    Case(
        "path outside",
        "data align m.jsonl out.jsonl",
        ("path upwards", "line 1 of m.jsonl", "give its absolute path"),
        lines("m.jsonl", {**GOOD, "audio": "../a.wav"}),
    ),
    Case(
        "wrong encoding",
        "data stats m.jsonl",
        ("m.jsonl:1: not UTF-8: byte 0xe9", "iconv"),
        file("m.jsonl", '{"id": "l", "audio": "a.wav", "text": "café"}\n'.encode("latin1")),
    ),
    Case(
        "recordings outside the source",
        "data import jsonl corpus out",
        ("none of the 1 records can be used", "'outside': 1", "out/rejected.jsonl"),
        both(folder("corpus"), lines("corpus/manifest.jsonl", {**GOOD, "audio": "/a.wav"})),
    ),
    Case(
        "half a surrogate pair",
        "data import jsonl m.jsonl out",
        ("{'bad character': 1}", "out/rejected.jsonl"),
        both(lines("m.jsonl", {**GOOD, "text": "hello \ud83d"}), file("a.wav", tone(1))),
    ),
    Case(
        "UTF-16",
        "data stats m.jsonl",
        ("m.jsonl: not UTF-8: the text is UTF-16", "iconv -f UTF-16 -t UTF-8"),
        file("m.jsonl", '{"id": "l", "audio": "a.wav", "text": "x"}\n'.encode("utf-16")),
    ),
    Case(
        "an address as path",
        "behave m.jsonl out",
        ("not a path: the audio is an address (https://)", "download it"),
        lines("m.jsonl", {**GOOD, "audio": "https://example.com/a.wav"}),
    ),
    Case(
        "unknown split",
        "data import jsonl m.jsonl out --split dev",
        ("--split dev: no record has it; there are: train",),
        lines("m.jsonl", {**GOOD, "split": "train"}),
    ),
    Case(
        "another layout",
        "data import librispeech . out",
        ("nothing found", "There are 2 files: ", "1 .scp", "This looks like Kaldi: use the kind 'kaldi'"),
        both(file("wav.scp", "a a.wav"), file("a.wav", tone(1))),
    ),
    Case("nothing to import", "data import folder . out", ("nothing found", "'folder' expects: Audio files", "`.txt` file")),
    Case("unknown kind of corpus", "data import librespeech . out", ("'librespeech' is unknown", "did you mean 'librispeech'")),
    Case(
        "unknown spelling",
        "data import folder . out --text-style sentense",
        ("text style 'sentense' is unknown", "did you mean 'sentence'"),
    ),
    Case(
        "a file where a folder is made",
        "data import jsonl $corpus out",
        ("out: ", "a folder is needed there"),
        file("out"),
    ),
    Case(
        "damaged list of rejected records",
        "data stats m.jsonl",
        ("rejected.jsonl: not a list of rejected records", "import the corpus again"),
        both(lines("m.jsonl", GOOD), lines("rejected.jsonl", {"id": "a"})),
    ),
]
RECORDINGS = [
    Case("missing", "data check m.jsonl", ("1 records cannot be used", "`mtbi data import jsonl`"), lines("m.jsonl", GOOD)),
    Case(
        "a segment that begins after its recording",
        "data import jsonl m.jsonl out",
        ("none of the 1 records can be used ({'outside the recording': 1})", "out/rejected.jsonl"),
        both(lines("m.jsonl", {**GOOD, "offset": 7.0, "duration": 2.0}), file("a.wav", tone(6))),
    ),
    Case(
        "a part of a recording, not imported",
        "data shard m.jsonl $answers out",
        ("a.wav (utterance a): duration differs: 2.00 s in the record, 6.00 s in the file", "mtbi data import jsonl"),
        both(lines("m.jsonl", {**GOOD, "duration": 2.0}), file("a.wav", tone(6))),
    ),
    Case(
        "a segment that begins before its recording",
        "data stats m.jsonl",
        ("start_s", "line 1 of m.jsonl"),
        lines("m.jsonl", {**GOOD, "start_s": -1.44}),
    ),
    Case(
        "a format that libsndfile does not read",
        "data shard m.jsonl $answers out",
        ("a.m4a (utterance a): ", "MP4 or M4A"),
        both(lines("m.jsonl", {**GOOD, "audio": "a.m4a"}), file("a.m4a", b"\0\0\0\x20ftypM4A ")),
    ),
    Case(
        "empty transcript",
        "data import jsonl m.jsonl out",
        ("none of the 1 records can be used ({'no transcript': 1})", "out/rejected.jsonl"),
        both(lines("m.jsonl", {**GOOD, "text": " … "}), file("a.wav", tone(1))),
    ),
    Case(
        "no audio",
        "data import jsonl m.jsonl out",
        ("{'not readable as audio': 1}", "out/rejected.jsonl"),
        both(lines("m.jsonl", GOOD), file("a.wav", "a shopping list\n" * 99)),
    ),
    Case(
        "truncated",
        "data shard m.jsonl $answers out",
        ("a.wav (utterance a): truncated: 9000 bytes of the 32044", "Sort such files out with `mtbi data import jsonl`"),
        both(lines("m.jsonl", GOOD), file("a.wav", tone(1)[:9000])),
    ),
    Case(
        "empty",
        "data shard m.jsonl $answers out",
        ("a.wav (utterance a): empty file: 0 bytes", "mtbi data import jsonl"),
        both(lines("m.jsonl", GOOD), file("a.wav")),
    ),
    Case(
        "a folder in place of a file",
        "data shard m.jsonl $answers out",
        ("a.wav (utterance a): cannot be opened: Is a directory", "mtbi data import jsonl"),
        both(lines("m.jsonl", GOOD), folder("a.wav")),
    ),
]
SEGMENTS = [
    Case(
        "a line of STM without an end",
        "score hyp.stm hyp.stm",
        ("hyp.stm:2: 4 fields", "FILE CHANNEL SPEAKER START END WORDS…"),
        file("hyp.stm", "m1 1 A 0 1 yes\nm1 1 A 2\n"),
    ),
    Case(
        "other sessions",
        "score hyp.rttm ref.stm",
        ("hyp.rttm lacks sessions of ref.stm: m2", "--missing-is-empty"),
        both(file("hyp.rttm", "SPEAKER m1 1 0 1 <NA> <NA> A <NA> <NA>\n"), file("ref.stm", "m1 1 A 0 1 yes\nm2 1 A 0 1 no\n")),
    ),
    Case("missing segments", "data convert gone.json out.stm", ("gone.json: no such file", "check the path")),
    Case("a negative collar", "score a.stm b.stm --collar -1", ("--collar", "must be a number, 0 or more, not '-1'")),
    Case(
        "no such session",
        "data convert a.stm b.srt --session m2",
        ("--session m2", "a.stm has no such session; there are m1"),
        file("a.stm", "m1 1 A 0 1 yes\n"),
    ),
]


@pytest.mark.parametrize("case", RECIPES + MANIFESTS + RECORDINGS + SEGMENTS, ids=lambda case: case.id)
def test_wrong_inputs(case: Case, check_case: Callable[[Case], None]) -> None:
    check_case(case)
