"""Alignment, answers, shards and the plan."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from errors.case import Case, both, damaged, file, folder, lines


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def upwards(data: bytes) -> bytes:
    return data.replace(b"shard.00000.mds", b"../../etc/passwd")


def larger(data: bytes) -> bytes:
    index = json.loads(data) | {"llm_size": "hidden_size 4096"}
    return json.dumps({key: value for key, value in index.items() if key != "sums"}).encode()


ALIGN = [
    Case(
        "unknown aligner",
        "data align $corpus out.jsonl --model wav2vec",
        ("wav2vec: no CTC model with tokenizer and preprocessor",),
        folder("wav2vec"),
    ),
    Case("a part that is none", "data align $corpus out.jsonl --part 9/8", ("--part 9/8", "the form 3/8")),
    Case("a folder as result", "data align $corpus out", ("out: ", "a file is needed there"), folder("out")),
]
BEHAVE = [
    Case(
        "unknown task",
        "behave $corpus out behaviour.tasks=[sing]",
        ("behaviour.tasks: no task 'sing'", "there are repeat, reverse"),
    ),
    Case("nearly a task", 'tasks try "one two" --task revers', ("no task 'revers'", "did you mean 'reverse'?")),
    Case("an empty sentence", 'tasks try " "', ("the sentence is empty", '"one two three"')),
    Case(
        "missing library",
        "behave $corpus out behaviour.library=[mine.yaml]",
        ("behaviour.library: no such file", "'mine.yaml'", "Shipped: content, digits"),
    ),
    Case(
        "bad YAML in a library",
        "tasks list mine.yaml",
        ("mine.yaml: not readable as YAML", "line 1"),
        file("mine.yaml", "tasks: {a: ["),
    ),
    Case(
        "bad task",
        'tasks try "one two" behaviour.library=[mine.yaml]',
        ("mine.yaml: task 'a' has an unknown key 'trian'", "did you mean 'train'?"),
        file("mine.yaml", "tasks: {a: {trian: [say it]}}"),
    ),
    Case("no LLM there", "behave $corpus out model.llm=llm", ("model.llm", "'llm'", "Hugging Face name"), folder("llm")),
    Case(
        "gold answers that nobody knows",
        "behave $corpus out behaviour.answers=gold",
        ("behaviour.answers=gold", "the manifest knows no right answer", "`answers`"),
    ),
    Case(
        "other settings",
        "behave $corpus $answers behaviour.top_k=3",
        ("holds answers made with other settings (top_k: 32)", "choose another folder"),
    ),
    Case(
        "another LLM's answers",
        "data shard $corpus $answers out 'behaviour.system_prompt=be brief'",
        ("answers of another LLM, chat template or system prompt", "run `mtbi behave` with this recipe"),
    ),
    Case("no answers", "data shard $corpus answers out", ("answers: no answers there", "`mtbi behave`"), folder("answers")),
    Case(
        "answers about others",
        "data shard m.jsonl $answers out",
        ("no answer is about an utterance of the manifest", "run `mtbi behave` on this manifest"),
        lines("m.jsonl", {"id": "b", "audio": "b.wav", "text": "one"}),
    ),
    Case(
        "a damaged note",
        "data shard $corpus answers out",
        ("answers/behaviour.json: damaged", "delete the folder and run `mtbi behave` again"),
        damaged("answers", "behaviour.json", half),
    ),
    Case(
        "damaged texts",
        "behave $corpus answers behaviour.tasks=[repeat,count]",
        ("answers/chunk-000000.jsonl: damaged", "run the same `mtbi behave` again"),
        damaged("answers", "chunk-*.jsonl", half),
    ),
    Case(
        "damaged numbers",
        "data shard $corpus answers out",
        ("answers/chunk-000000.safetensors: missing or damaged", "run the same `mtbi behave` again"),
        damaged("answers", "chunk-*.safetensors", half),
    ),
    Case(
        "missing numbers",
        "data shard $corpus answers out",
        ("answers/chunk-000000.safetensors: missing or damaged", "run the same `mtbi behave` again"),
        damaged("answers", "chunk-*.safetensors"),
    ),
]
SHARDS = [
    Case("no shards", "data stats shards", ("shards: no shards there", "`mtbi data shard`"), folder("shards")),
    Case(
        "a damaged list of shards",
        "data stats shards",
        ("shards/index.json: damaged", "copy it again or make the shards again"),
        damaged("shards", "index.json", half),
    ),
    Case(
        "a path traversal",
        "data encode shards out",
        ("index.json is refused: the shard name '../../etc/passwd'", "make the shards again"),
        damaged("shards", "index.json", upwards),
    ),
    Case(
        "a damaged table",
        "plan demo data.shards=[shards]",
        ("shards/branches.npy: cannot be read", "make the shards again"),
        damaged("shards", "branches.npy", lambda data: data[:20]),
    ),
    Case(
        "a damaged shard",
        "data encode shards out",
        ("shard.00000.mds: damaged (its checksum", "copy it again or make the shards again"),
        damaged("shards", "shard.*.mds", flipped),
    ),
    Case(
        "a missing shard",
        "data encode shards out",
        ("shard.00000.mds: this shard is missing", "copy it again or make the shards again"),
        damaged("shards", "shard.*.mds"),
    ),
    Case("shards that are there", "data shard $corpus $answers $shards", ("not empty", "Choose another one, or delete it")),
    Case(
        "unknown scheme of an address",
        "data stats ftp://host/digits",
        ("ftp://host/digits/mtbi_index.json: not an address that can be used", "Write s3://bucket/folder"),
    ),
    Case("no bucket", "data shard $corpus $answers s3:///digits", ("not an address that can be used", "s3://bucket/folder")),
    Case(
        "a file as folder of plots",
        "data stats $corpus --plots plots",
        ("plots: ", "a folder is needed there"),
        file("plots"),
    ),
]
PLAN = [
    Case(
        "no shards named",
        "plan whisper-large-v3_qwen3-8b",
        ("data.shards is empty", "`mtbi data shard`", "data.shards=[shards/train]"),
    ),
    Case(
        "rows too small",
        "plan demo data.shards=[$shards] plan.row_tokens=5",
        ("no utterance fits plan.row_tokens=5", "1 need more tokens"),
    ),
    Case(
        "prompts on the other side of the speech",
        "plan demo data.shards=[$shards] behaviour.prompt_first=true",
        ("its prompts stand after the speech", "set behaviour.prompt_first=false"),
    ),
    Case(
        "another LLM's shards",
        "plan demo data.shards=[$shards] behaviour.template_variables.day=monday",
        ("another LLM, chat template or system prompt than the recipe's", "run `mtbi behave` and `mtbi data shard`"),
    ),
    Case(
        "shards of a larger LLM",
        "plan demo data.shards=[shards]",
        ("an LLM of another size (hidden_size 4096; set behaviour.allow_other_teacher=true", "run `mtbi behave`"),
        damaged("shards", "mtbi_index.json", larger),
    ),
    Case(
        "shards of two LLMs",
        "plan demo data.shards=[shards,$shards]",
        ("hold answers of LLMs of different sizes (", "hidden_size 4096)", "make one of them again"),
        damaged("shards", "mtbi_index.json", larger),
    ),
    Case(
        "a variable that is the dialogue's own",
        "behave $corpus out behaviour.template_variables.tools=none",
        ("behaviour.template_variables: tools cannot be set", "leave it out"),
    ),
    Case(
        "a variable that is no plain value",
        "behave $corpus out behaviour.template_variables.day=[1,2]",
        ("behaviour.template_variables.day must be text, a number, true or false", "[1, 2]"),
    ),
    Case(
        "a task that the shards lack",
        "plan demo data.shards=[$shards] plan.tasks=[sing]",
        ("plan.tasks: no task 'sing' in the shards, which hold count, repeat",),
    ),
    Case("no GPU", "plan demo --gpus 0", ("argument --gpus: must be at least 1, not 0", "`mtbi plan --help`")),
    Case(
        "fields after --gpus",
        "plan demo --gpus 8 train.steps=5",
        ("argument --gpus: must be a whole number, not 'train.steps=5'", "key=value stands before"),
    ),
    Case("memory that is no number", "plan demo --gpus 8 --gpu-memory much", ("--gpu-memory", "a number above 0, not 'much'")),
    Case(
        "an encoder of another kind",
        "plan demo model.encoder.path=llama --gpus 8",
        ("model.encoder.path", "'llama'", "supported: demo, whisper"),
        both(folder("llama"), file("llama/config.json", '{"model_type": "llama"}')),
    ),
]


@pytest.mark.parametrize("case", ALIGN + BEHAVE + SHARDS + PLAN, ids=lambda case: case.id)
def test_wrong_stages(case: Case, meet: Callable[[Case], None]) -> None:
    meet(case)
