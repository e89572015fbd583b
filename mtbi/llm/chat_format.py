"""Dialogues as token ids, by the LLM's own chat template, for the text LLM that teaches and the speech LLM that learns.

A dialogue about a transcript is `prefix_ids + transcript_ids + suffix_ids(prompt)`, then the answer. In a dialogue about speech
adapter frames replace the transcript. With the prompt first, a dialogue is `prefix_ids + lead_ids(prompt) + transcript_ids +
suffix_ids("")`, then the answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from mtbi import text_units
from mtbi.errors import UserError
from mtbi.llm import identity, vocabulary
from mtbi.llm.control_tokens import CUT, Tokens

if TYPE_CHECKING:
    from mtbi.recipe import Recipe

#: Placeholder of the user's words while the template is rendered. Its noncharacters occur in no text, and a template that
#: rewrites letters or signs is noticed.
MARK = "\ufdd1mtBI <&> heard\ufdd1"
ANSWER_MARK = "\ufdd2answer\ufdd2"
TODAY = datetime(2024, 7, 26)  # the date in every dialogue
#: Variables for templates: no reasoning before the answer (Qwen3), and a fixed date.
TEMPLATE_VARIABLES: dict[str, Any] = {"enable_thinking": False, "date_string": TODAY.strftime("%d %b %Y")}
#: Variables that a recipe cannot set: arguments of `apply_chat_template`, and those of the dialogue itself.
RESERVED = {
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "strftime_now", "raise_exception",
}  # fmt: skip
PROBE = "Repeat it."  # a prompt whose token ids are in the fingerprint
KEPT_PROMPTS = 4096  # prompts whose token ids are cached


def resolve_llm(path: str) -> str:
    """The folder or Hugging Face name of an LLM; `demo` is the shipped miniature one."""
    return str(Path(__file__).parents[1] / "demo" / "weights" / "text_llm") if path == "demo" else path


def load_llm_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of an LLM. Raises UserError where it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve_llm(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # for a folder without a tokenizer transformers may raise anything
        raise UserError(
            f"model.llm: no tokenizer can be read from {path!r} ({error}); give a Hugging Face name, or a folder that holds one"
        ) from error


def fixed_clock(template: str, today: datetime) -> str:
    """A Jinja macro that replaces the clock in `template`: it always gives `today`. Empty if the template reads no clock."""
    if "strftime_now" not in template:
        return ""
    letters = "aAbBcdDeFgGhHIjmMnpStTuUVwWxXyYZ"
    codes = [f"%-{letter}" for letter in "dmHIMSjyY"] + [f"%{letter}" for letter in letters]
    replacements = "".join(f" | replace({json.dumps(code)}, {json.dumps(today.strftime(code))})" for code in codes)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{replacements} }}}}{{%- endmacro -%}}\n"


class ChatFormat:
    """Token ids of the parts of a dialogue, by the chat template of `tokenizer`. Raises UserError where it has no template.

    `variables` are given to the template beside those of `TEMPLATE_VARIABLES`. `llm_size` is that of `identity.llm_size`, read
    from the tokenizer's folder where it is not given. `new_tokens` names what was added to the LLM's own tokenizer.
    """

    today = TODAY

    def __init__(
        self,
        tokenizer: Any,
        system_prompt: str = "",
        variables: Mapping[str, Any] | None = None,
        llm_size: str | None = None,
        new_tokens: Sequence[str] = (),
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "the LLM")
            raise UserError(
                f"{name}: its tokenizer has no chat template, so dialogues cannot be built. Use the instruction-tuned version, "
                "or put a `chat_template.jinja` into its folder."
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.own_variables = dict(variables or {})
        if reserved := sorted(RESERVED & set(self.own_variables)):
            raise UserError(f"behaviour.template_variables: {reserved[0]} cannot be set; leave it out")
        self.tokens = Tokens(tokenizer)
        self._llm_size = llm_size
        self.new_tokens = list(new_tokens)  #: names of the tokens that `mtbi.llm.vocabulary` has added to the tokenizer
        self._kept: dict[tuple[str, bool], list[int]] = {}
        # Some SentencePiece tokenizers add a space before every text. A second one would be a token of its own.
        self._space = "" if self.tokens.prefixes_space else " "

    @property
    def variables(self) -> dict[str, Any]:
        """The template's variables besides the messages; plain values only."""
        return TEMPLATE_VARIABLES | self.own_variables

    def _render(self, messages: list[dict[str, str]], ask: bool) -> str:
        system_prompt = self.tokens.harmless(self.system_prompt)
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        template = self.tokenizer.get_chat_template()
        try:
            rendered = self.tokenizer.apply_chat_template(
                [*system, *messages],
                chat_template=fixed_clock(template, self.today) + template,
                tokenize=False,
                add_generation_prompt=ask,
                **self.variables,
            )
        except TemplateError as error:
            hint = " Leave behaviour.system_prompt empty for this LLM." if "system" in str(error).lower() else ""
            raise UserError(f"{self.tokenizer.name_or_path}: its chat template refuses the dialogue: {error}.{hint}") from error
        if system_prompt.strip() not in rendered:
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} drops or rewrites the system message; leave "
                "behaviour.system_prompt empty for this LLM."
            )
        return rendered

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a template's text with its control tokens. None are added."""
        return self.tokens.ids(text)

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of text by a user or a corpus, without control tokens, even if the text spells one."""
        return self.tokens.plain_ids(text)

    def following_ids(self, text: str) -> list[int]:
        """As `plain_ids`, of a text that directly follows something else in the same message."""
        return self.tokens.following_ids(text)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer: as `plain_ids`, but new tokens may be spelt in it."""
        if not self.new_tokens:
            return self.plain_ids(text)
        pieces = re.split(f"({'|'.join(map(re.escape, self.new_tokens))})", text)
        harmless = (piece if piece in self.new_tokens else self.tokens.harmless(piece) for piece in pieces if piece)
        return self.text_ids(CUT.join(harmless))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return vocabulary.decode(self.tokenizer, ids)

    def _around(self, before: str, after: str) -> tuple[str, str]:
        """The template's text around `MARK` in a user's message, with the texts `before` and `after` the mark."""
        content = f"{self.tokens.harmless(before)}{MARK}{self.tokens.harmless(after)}"
        rendered = self._render([{"role": "user", "content": content}], ask=True)
        if rendered.count(MARK) != 1 or content.strip() not in rendered:
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} drops, repeats or rewrites what the user says; it cannot "
                "be used."
            )
        opening, _, closing = rendered.partition(MARK)
        return opening, closing

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Token ids before the user's first word: start token, system message, opening of the user's turn."""
        return self.text_ids(self._around("", "")[0])

    def suffix_ids(self, prompt: str) -> list[int]:
        """Token ids after the user's speech: the prompt on a line of its own, end of the turn, opening of the answer."""
        return self._remembered(prompt, first=False)

    def lead_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt before the user's speech, on a line of its own."""
        return self._remembered(prompt, first=True)

    def _remembered(self, prompt: str, first: bool) -> list[int]:
        """Token ids of a prompt before or after the speech, from a cache: there are only a few prompts."""
        ids = self._kept.get((prompt, first))
        if ids is None:
            if first:
                text = self._around(f"{prompt}\n", "")[0].removeprefix(self._around("", "")[0])
            else:
                text = self._around("", f"\n{prompt}" if prompt else "")[1]
            ids = self.text_ids(text)
            if len(self._kept) >= KEPT_PROMPTS:
                self._kept.clear()
            self._kept[prompt, first] = ids
        return ids

    @cached_property
    def _after_answer(self) -> list[int]:
        """Token ids after an answer, up to the end of the conversation."""
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER_MARK}]
        return self.text_ids(self._render(talk, ask=False).partition(ANSWER_MARK)[2])

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer: the first special token after it in the template, else the tokenizer's end token."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return next((i for i in self._after_answer if i in special), self.tokenizer.eos_token_id)

    def _further_turn(self, content: str) -> str:
        """The template's text after an answer, through a further turn of the user, to the opening of the next answer."""
        talk = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": ANSWER_MARK},
            {"role": "user", "content": content},
        ]
        rendered = self._render(talk, ask=True)
        if rendered.count(ANSWER_MARK) != 1 or content.strip() not in rendered:
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} drops, repeats or rewrites earlier turns; restart the "
                "conversation after each answer."
            )
        return rendered.partition(ANSWER_MARK)[2]

    def _after_end(self, ids: list[int]) -> list[int]:
        """The ids after the end token of an answer."""
        return ids[ids.index(self.end_id) + 1 :] if self.end_id in ids else ids

    def turn_ids(self, prompt: str) -> list[int]:
        """From after the end token of the last answer, through a further user turn, to the opening of the next answer."""
        return [*self.opening_ids, *self.plain_ids(prompt.strip()), *self.suffix_ids("")]

    @cached_property
    def opening_ids(self) -> list[int]:
        """From after the end token of the last answer to the first word of a further user turn."""
        return self._after_end(self.text_ids(self._further_turn(MARK).partition(MARK)[0]))

    def stretches(self, words: Sequence[str], continues: bool = False) -> list[tuple[int, list[int]]]:
        """The shortest stretches of neighbouring units (`mtbi.text_units`) that are whole tokens: (units, token ids).

        With spaces between words every word is a stretch, tokenised alone with the space before it. In other scripts a token
        may span several characters. With `continues` the units follow speech or other text.
        """
        pieces = text_units.pieces(words)
        starts = [number for number, piece in enumerate(pieces) if number == 0 or piece.startswith(" ")]
        stretches = []
        for first, stop in pairwise([*starts, len(pieces)]):
            spaced = first > 0 or (continues and not text_units.unspaced(pieces[0]))
            stretches += self._cut_at_tokens([piece.lstrip() for piece in pieces[first:stop]], self._space if spaced else "")
        return stretches

    def _cut_at_tokens(self, units: list[str], space: str) -> list[tuple[int, list[int]]]:
        """The stretches in units without spaces between them."""
        text = space + "".join(units)
        ids = self.plain_ids(text)
        if len(units) == 1 or not self.tokenizer.is_fast:  # tokenizers written in Python have no offsets
            return [(len(units), ids)]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if encoded.input_ids != ids:  # the text spells a control token
            return [(len(units), ids)]
        offsets = encoded.offset_mapping
        inside = {index for start, end in offsets for index in range(start + 1, end)}
        begins = list(accumulate(map(len, units[:-1]), initial=len(space)))
        firsts = [number for number, begin in enumerate(begins) if number == 0 or begin not in inside]
        stretches: list[tuple[int, list[int]]] = [(stop - first, []) for first, stop in pairwise([*firsts, len(units)])]
        edges = [begins[first] for first in firsts]
        for token, (start, _) in zip(ids, offsets, strict=True):
            stretches[max(0, bisect(edges, start) - 1)][1].append(token)
        return stretches

    def word_ids(self, words: Sequence[str], continues: bool = False) -> list[list[int]]:
        """Token ids of each stretch. In scripts with spaces each word is one."""
        return [ids for _, ids in self.stretches(words, continues)]

    def timed_ids(
        self, words: Sequence[tuple[str, float, float]], continues: bool = False
    ) -> tuple[list[list[int]], list[tuple[float, float]]]:
        """Token ids of each stretch of `(unit, start, end)`, and the start and end of each stretch, in the units' own unit."""
        stretches = self.stretches([word for word, _, _ in words], continues)
        stops = list(accumulate(count for count, _ in stretches))
        spans = [(words[stop - count][1], words[stop - 1][2]) for stop, (count, _) in zip(stops, stretches, strict=True)]
        return [ids for _, ids in stretches], spans

    def transcript_ids(self, text: str, continues: bool = False) -> list[int]:
        """Token ids of a transcript, stretch by stretch."""
        return [i for ids in self.word_ids(text_units.units(text), continues) for i in ids]

    def around_speech(self, prompt: str, prompt_first: bool) -> tuple[list[int], list[int]]:
        """Token ids between `prefix_ids` and the speech, and between the speech and the answer."""
        if prompt_first:
            return self.lead_ids(prompt) if prompt else [], self.suffix_ids("")
        return [], self.suffix_ids(prompt)

    def dialogue_ids(self, transcript: str, prompt: str, prompt_first: bool = False) -> list[int]:
        """The text LLM's prompt about a transcript."""
        lead, suffix = self.around_speech(prompt, prompt_first)
        return [*self.prefix_ids, *lead, *self.transcript_ids(transcript), *suffix]

    @cached_property
    def llm_size(self) -> str:
        """The size of the LLM by its configuration (`identity.llm_size`); empty if it is not known."""
        if self._llm_size is None:
            return identity.llm_size(str(self.tokenizer.name_or_path), local=True)
        return self._llm_size

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the vocabulary, the chat template with its variables, the system prompt and rendered dialogues.

        Shards, answers and recipe must agree on it (`mtbi.llm.identity`). New tokens are not part of it: they change no id.
        """
        rendered = [self.prefix_ids, self.lead_ids(PROBE), self.suffix_ids(PROBE), self.suffix_ids(""), self.end_id]
        facts = [self._basic_facts, self.own_variables, rendered]
        return f"{identity.VERSION}-{hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()[:16]}"

    @cached_property
    def first_fingerprint(self) -> str:
        """The fingerprint by the rule of version 1, which old shards and answers hold."""
        return hashlib.sha256(json.dumps(self._basic_facts, ensure_ascii=False).encode()).hexdigest()[:16]

    @cached_property
    def _basic_facts(self) -> list[Any]:
        own = {token: number for token, number in self.tokenizer.get_vocab().items() if token not in self.new_tokens}
        return [sorted(own.items()), self.tokenizer.chat_template, self.system_prompt, self.end_id]

    @cached_property
    def reads_clock(self) -> bool:
        """Whether the template's text depends on the current date, which is fixed here."""
        tomorrow = ChatFormat(self.tokenizer, self.system_prompt, self.own_variables, self.llm_size, self.new_tokens)
        tomorrow.today = self.today + timedelta(days=400, hours=1, minutes=1)
        return tomorrow._around("", "") != self._around("", "")


def read_chat(recipe: Recipe) -> ChatFormat:
    """The chat format of a recipe's LLM."""
    model, behaviour = recipe.model, recipe.behaviour
    tokenizer = load_llm_tokenizer(model.llm, model.trust_remote_code)
    vocabulary.add_new_tokens(tokenizer, model.new_tokens, model.hidden_tokens)
    size = identity.llm_size(resolve_llm(model.llm))
    return ChatFormat(tokenizer, behaviour.system_prompt, behaviour.template_variables, size, model.new_tokens)
