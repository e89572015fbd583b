"""How a dialogue becomes token ids: one builder for the text LLM that teaches and for the speech LLM that learns.

A dialogue about a transcript is `prefix_ids + transcript_ids + suffix_ids(prompt)`, then the answer; about speech, adapter
frames stand in the place of the transcript. With the prompt first it is `prefix_ids + lead_ids(prompt) + transcript_ids +
suffix_ids("")`.
All of them come from the LLM's own chat template.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from mtbi.data import text_units
from mtbi.errors import UserError

if TYPE_CHECKING:
    from mtbi.recipe import Recipe

MARK = "⸨mtbi⸩"  # stands for the user's words while the template is rendered
ANSWER_MARK = "⸨answer⸩"
#: Variables that templates ask for: no reasoning before the answer (Qwen3), and a date that is the same tomorrow (Llama 3).
TEMPLATE_VARIABLES = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def resolve_llm(path: str) -> str:
    """The folder or Hugging Face name of an LLM; `demo` is the shipped miniature one."""
    return str(Path(__file__).parents[1] / "demo" / "weights" / "text_llm") if path == "demo" else path


def load_llm_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of an LLM. Raises UserError where it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve_llm(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # of a folder without a tokenizer transformers raises whatever its converters do
        raise UserError(
            f"model.llm: no tokenizer can be read from {path!r} ({error}); give a Hugging Face name, or a folder that holds one"
        ) from error


class ChatFormat:
    """Token ids of the parts of a dialogue, by the chat template of `tokenizer`. Raises UserError where it has no template."""

    def __init__(self, tokenizer: Any, system_prompt: str = "") -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "the LLM")
            raise UserError(
                f"{name}: its tokenizer has no chat template, so dialogues cannot be built. Use the instruction-tuned version, "
                "or put a `chat_template.jinja` into its folder."
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self._suffixes: dict[str, list[int]] = {}
        # Some SentencePiece tokenizers put a space before every text by themselves; a second one would be a token of its own.
        self._space = "" if self.text_ids("a a") == 2 * self.text_ids("a") else " "

    def _render(self, messages: list[dict[str, str]], ask: bool) -> str:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        messages = [{**message, "content": text_units.nfc(message["content"])} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                [*system, *messages], tokenize=False, add_generation_prompt=ask, **TEMPLATE_VARIABLES
            )
        except TemplateError as error:
            hint = " Leave behaviour.system_prompt empty for this LLM." if "system" in str(error).lower() else ""
            raise UserError(f"{self.tokenizer.name_or_path}: its chat template refuses the dialogue: {error}.{hint}") from error

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a piece of text, special tokens in it included, none added."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _around(self, content: str) -> tuple[str, str]:
        before, found, after = self._render([{"role": "user", "content": content}], ask=True).partition(MARK)
        if not found:
            raise UserError(f"the chat template of {self.tokenizer.name_or_path} drops what the user says; it cannot be used.")
        return before, after

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Everything before the user's first word: start token, system message, opening of the user's turn."""
        return self.text_ids(self._around(MARK)[0])

    def suffix_ids(self, prompt: str) -> list[int]:
        """Everything after the user's speech: the prompt on a line of its own, end of the turn, opening of the answer."""
        if prompt not in self._suffixes:
            self._suffixes[prompt] = self.text_ids(self._around(f"{MARK}\n{prompt}" if prompt else MARK)[1])
        return self._suffixes[prompt]

    def lead_ids(self, prompt: str) -> list[int]:
        """Where the prompt stands before the user's speech: the prompt, on a line of its own."""
        before, after = self._around(f"{prompt}\n{MARK}")[0], self._around(MARK)[0]
        return self.text_ids(before.removeprefix(after))

    @cached_property
    def _after_answer(self) -> list[int]:
        """What the template writes after an answer, up to the end of the conversation."""
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER_MARK}]
        return self.text_ids(self._render(talk, ask=False).partition(ANSWER_MARK)[2])

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer: the first special token that the template writes after one, else the end token."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return next((i for i in self._after_answer if i in special), self.tokenizer.eos_token_id)

    def turn_ids(self, prompt: str) -> list[int]:
        """From after the end token of the last answer, through a further user turn, to the opening of the next answer."""
        talk = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": ANSWER_MARK},
            {"role": "user", "content": prompt},
        ]
        ids = self.text_ids(self._render(talk, ask=True).partition(ANSWER_MARK)[2])
        return ids[ids.index(self.end_id) + 1 :] if self.end_id in ids else ids

    def stretches(self, words: Sequence[str], continues: bool = False) -> list[tuple[int, list[int]]]:
        """The shortest stretches of neighbouring units (`mtbi.data.text_units`) that are whole tokens: (units, token ids).

        With spaces between words every word is a stretch, tokenised alone with the space before it. In other scripts a token
        may span several characters. `continues`: the units follow speech or other text.
        """
        pieces = text_units.pieces(words)
        starts = [place for place, piece in enumerate(pieces) if place == 0 or piece.startswith(" ")]
        found = []
        for first, stop in pairwise([*starts, len(pieces)]):
            spaced = first > 0 or (continues and not text_units.unspaced(pieces[0]))
            found += self._cut_at_tokens([piece.lstrip() for piece in pieces[first:stop]], self._space if spaced else "")
        return found

    def _cut_at_tokens(self, units: list[str], space: str) -> list[tuple[int, list[int]]]:
        """The stretches of units that no space divides."""
        text = space + "".join(units)
        ids = self.text_ids(text)
        if len(units) == 1 or not self.tokenizer.is_fast:  # the tokenizers written in Python tell no offsets
            return [(len(units), ids)]
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        if len(offsets) != len(ids):
            return [(len(units), ids)]
        inside = {place for start, end in offsets for place in range(start + 1, end)}
        begins = list(accumulate(map(len, units[:-1]), initial=len(space)))
        firsts = [number for number, begin in enumerate(begins) if number == 0 or begin not in inside]
        found: list[tuple[int, list[int]]] = [(stop - first, []) for first, stop in pairwise([*firsts, len(units)])]
        edges = [begins[first] for first in firsts]
        for token, (start, _) in zip(ids, offsets, strict=True):
            found[max(0, bisect(edges, start) - 1)][1].append(token)
        return found

    def word_ids(self, words: Sequence[str], continues: bool = False) -> list[list[int]]:
        """Token ids of each stretch: of each word, where the script has spaces."""
        return [ids for _, ids in self.stretches(words, continues)]

    def timed_ids(self, words: Sequence[tuple[str, float, float]]) -> tuple[list[list[int]], list[tuple[float, float]]]:
        """Token ids of each stretch of `(unit, start, end)`, and when it starts and ends."""
        found = self.stretches([word for word, _, _ in words])
        stops = list(accumulate(count for count, _ in found))
        spans = [(words[stop - count][1], words[stop - 1][2]) for stop, (count, _) in zip(stops, found, strict=True)]
        return [ids for _, ids in found], spans

    def transcript_ids(self, text: str) -> list[int]:
        """Token ids of a transcript, stretch by stretch."""
        return [i for ids in self.word_ids(text_units.units(text)) for i in ids]

    def around_speech(self, prompt: str, prompt_first: bool) -> tuple[list[int], list[int]]:
        """What stands between `prefix_ids` and the speech, and between the speech and the answer."""
        return (self.lead_ids(prompt), self.suffix_ids("")) if prompt_first else ([], self.suffix_ids(prompt))

    def dialogue_ids(self, transcript: str, prompt: str, prompt_first: bool = False) -> list[int]:
        """The text LLM's prompt about a transcript."""
        lead, suffix = self.around_speech(prompt, prompt_first)
        return [*self.prefix_ids, *lead, *self.transcript_ids(transcript), *suffix]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the vocabulary, the chat template and the system prompt: what shards and recipe must agree on."""
        facts = [sorted(self.tokenizer.get_vocab().items()), self.tokenizer.chat_template, self.system_prompt, self.end_id]
        return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()[:16]


def read_chat(recipe: Recipe) -> ChatFormat:
    """The chat format of a recipe's LLM."""
    return ChatFormat(load_llm_tokenizer(recipe.model.llm, recipe.model.trust_remote_code), recipe.behaviour.system_prompt)
