"""Wrong keys, types and values are named; sections stand in lists and mappings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mtbi import recipe
from mtbi.errors import UserError
from mtbi.recipe.fields import setting
from mtbi.recipe.schema import reference


@dataclass
class Source:
    address: str = setting("", "where the shards lie")
    weight: float = setting(1.0, "how often they are drawn", minimum=0.5, maximum=4)


@dataclass
class Mixture:
    """A section that holds others."""

    sources: list[Source] = field(default_factory=list)
    named: dict[str, Source] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=5", "unknown key 'trian': did you mean train?"),
        ("train.stpes=5", "unknown key 'train.stpes': did you mean train.steps?"),
        ("model.encoder.pth=x", "did you mean model.encoder.path?"),
        ("train.zzzzzzzz=5", "choose one of steps, learning_rate"),
        ("train.steps", "key=value"),
        ("train.steps=many", "train.steps must be a whole number, not 'many'"),
        ("train.steps=2.5", "train.steps must be a whole number"),
        ("train.steps=true", "train.steps must be a whole number"),
        ("train.steps=0", "at least 1"),
        ("train.learning_rate=.nan", "must be a number"),
        ("train.learning_rate=-1", "must not be negative"),
        ("train=5", "train is a section with keys of its own"),
        ("interleave.share=1.5", "share between 0 and 1"),
        ("interleave.span_words_min=4", "is more than interleave.span_words_max"),
        ("train.alignment_steps=250", "leaves none of train.steps (250) for imitation"),
        ("interleave.text_share_min=0.95", "is more than interleave.text_share_max"),
        ("loss.kl=0", "nothing would be learnt"),
        ("model.trust_remote_code=1", "true or false"),
        ("model.llm=5", "model.llm must be text"),
        ("data.shards=folder", "data.shards must be a list"),
        ("data.shards=[1]", "data.shards[0] must be text"),
        ("loss.task_weights=[1]", "must be a mapping"),
        ("loss.task_weights.sort=x", "loss.task_weights.sort must be a number"),
        ("precision=bf61", "did you mean bf16?"),
        ("precision=on", "precision must be text"),
        ("model.activation_checkpointing=onn", "did you mean on?"),
        ("interleave.cut=[", "not readable as YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("demo", [override])
    assert message in str(caught.value)


def test_sections_stand_in_lists_and_mappings() -> None:
    values = {"sources": [{"address": "a"}, {"weight": "2e0"}], "named": {"text": {"address": "b"}, "empty": None}}
    built = recipe.build(Mixture, values)
    assert built == Mixture([Source("a"), Source(weight=2.0)], {"text": Source("b"), "empty": Source()})
    assert [(note.path, note.kind) for note in reference(Mixture, "data")] == [
        ("data.sources", "list[Source]"),
        ("data.named", "dict[str, Source]"),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": {"address": "a"}}, r"data.sources must be a list, for example \[\{address: …\}\]"),
        ({"named": ["a"]}, r"data.named must be a mapping, for example \{NAME: \{address: …\}\}"),
        ({"sources": [{"adress": "a"}]}, r"unknown key 'data.sources\[0\].adress': did you mean data.sources\[0\].address\?"),
        ({"named": {"text": {"weight": 0}}}, r"data.named.text.weight must be at least 0.5, not 0"),
        ({"named": {"text": {"weight": 5}}}, r"data.named.text.weight must be at most 4, not 5"),
        ({"named": {"text": 5}}, r"data.named.text is a section with keys of its own \(address, weight\), not 5"),
    ],
)
def test_mistakes_in_them_are_named_with_their_path(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.build(Mixture, values, "data")


def test_a_word_may_stand_for_a_list() -> None:
    load = recipe.load
    assert load("demo", ["model.encoder.layers=[2,-1]"]).model.encoder.layers == [2, -1]
    assert load("demo", ["model.encoder.layers=all"]).model.encoder.layers == "all"
    for value, message in (("al", "did you mean all"), ("3", "must be a list"), ("[a]", "must be a whole number")):
        with pytest.raises(UserError, match=message):
            load("demo", [f"model.encoder.layers={value}"])
