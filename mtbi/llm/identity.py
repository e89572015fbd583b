"""Which LLM and which dialogues stored answers were made with, and whether a recipe has the same ones.

`made` in this module is the record in shards (`Index.facts`) and in folders of answers (`behaviour.json`): `fingerprint` and
`llm`, since version 2 also `llm_size`, `prefix_ids` and `end_id`, and `new_tokens` where the recipe had some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtbi.llm.chat_format import ChatFormat

VERSION = 2  #: of the rule by which a fingerprint is made
SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_experts", "num_local_experts", "vocab_size")
SIZE_IN_NAME = re.compile(r"\d+(?:x\d+)?(?:\.\d+)?[bm](?![a-z])")
FACTS = {"fingerprint", "llm", "llm_size", "prefix_ids", "end_id"}  #: of `facts_of`
OTHER = "another LLM, chat template or system prompt"


def llm_size(path: str, local: bool = False) -> str:
    """The shape of an LLM from its `config.json`, which differs between sizes of one family; empty if it cannot be read.

    `path` is a folder or a Hugging Face name. With `local` nothing is fetched. No code that comes with the LLM is run.
    """
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config, _ = PretrainedConfig.get_config_dict(path, local_files_only=local or Path(path).exists())
        if config.get("model_type") in CONFIG_MAPPING:
            config = AutoConfig.for_model(**config).get_text_config().to_dict()
    except Exception:  # missing or damaged: loading the LLM reports it with a better message
        return ""
    values = config.get("text_config") or config
    return ", ".join(f"{name} {values[name]}" for name in SIZES if values.get(name) is not None)


def other_llm(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the LLMs of two records differ in size. The names decide if a record has no size."""
    sizes = first.get("llm_size"), second.get("llm_size")
    if all(sizes):
        return sizes[0] != sizes[1]
    named = [size_in_name(str(made.get("llm", ""))) for made in (first, second)]
    return all(named) and named[0] != named[1]


def size_in_name(llm: str) -> str:
    """The size in an LLM's name: `0.6b` for `Qwen/Qwen3-0.6B`; empty if there is none."""
    sizes = (SIZE_IN_NAME.findall(part.lower()) for part in reversed(Path(llm).parts))
    return next((matches[-1] for matches in sizes if matches), "")


def version_of(fingerprint: str) -> int:
    """The version of the rule by which a fingerprint was made."""
    version, dash, _ = fingerprint.partition("-")
    return int(version) if dash and version.isdigit() else 1


def other_dialogues(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two records stand for different dialogues. Fingerprints of different versions are not compared."""
    prints = str(first["fingerprint"]), str(second["fingerprint"])
    if version_of(prints[0]) == version_of(prints[1]) and prints[0] != prints[1]:
        return True
    return any(key in first and key in second and first[key] != second[key] for key in ("prefix_ids", "end_id"))


def facts_of(chat: ChatFormat) -> dict[str, Any]:
    """The record of the LLM and its dialogues that answers and shards are stored with."""
    facts = {
        "fingerprint": chat.fingerprint,
        "llm": str(chat.tokenizer.name_or_path),
        "llm_size": chat.llm_size,
        "prefix_ids": chat.prefix_ids,
        "end_id": chat.end_id,
    }
    return facts | ({"new_tokens": chat.new_tokens} if chat.new_tokens else {})


def difference(made: Mapping[str, Any], chat: ChatFormat, allow_other_teacher: bool = False) -> str:
    """Why stored answers cannot be used with the recipe's LLM, for a message before "than the recipe's"; empty if they can.

    Answers of version 1 are accepted if their fingerprint is right by the rule of version 1, and their dialogues begin and end
    as today's do. Answers made without some of the recipe's new tokens are accepted: the ids of all other tokens are the same.
    """
    today = facts_of(chat)
    new_tokens = list(made.get("new_tokens") or [])
    if new_tokens != chat.new_tokens[: len(new_tokens)]:
        return f"other new tokens ({', '.join(new_tokens)})"
    if version_of(str(made["fingerprint"])) == 1:
        if made["fingerprint"] != chat.first_fingerprint or chat.own_variables:
            return OTHER
        if "prefix_ids" not in made and chat.reads_clock:
            return "perhaps another date in its dialogues (the version of mtbi that made it did not fix the date)"
        today["fingerprint"] = made["fingerprint"]
    if made["fingerprint"] != today["fingerprint"]:
        return OTHER
    if other_dialogues(made, today):
        return "another beginning or end of the dialogues (perhaps a date that the chat template writes)"
    if not allow_other_teacher and other_llm(made, today):
        size = made.get("llm_size") or made["llm"]
        return f"an LLM of another size ({size}; set behaviour.allow_other_teacher=true if that is meant)"
    return ""
