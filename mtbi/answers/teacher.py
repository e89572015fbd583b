"""The teacher: the text LLM answers batches of prompts, with the log-probabilities of its likeliest tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from mtbi.errors import UserError
from mtbi.llm import attention, back_end
from mtbi.llm import precision as precisions
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer, resolve_llm
from mtbi.recipe import BehaviourConfig, ModelConfig

if TYPE_CHECKING:
    from mtbi.llm.decode import Prompts, Stop

IMPOSSIBLE = -1e4  # a log-probability that is 0 as a probability and fits into float16
VLLM_GROUPS = 1024  # groups of prompts that vLLM is given together: thousands of prompts, of which it makes batches itself


@dataclass
class Answer:
    """One answer. The tokens that are not kept have together the probability 1 - Σ exp(topk_logprobs)."""

    ids: list[int]  #: token ids, with the template's end token unless the answer was cut off
    truncated: bool  #: cut off at the longest length
    topk_ids: np.ndarray  #: (tokens, k) int32
    topk_logprobs: np.ndarray  #: (tokens, k) float16, natural logarithm
    further: list[Answer] = field(default_factory=list)  #: the answers to the follow-ups, in order

    @property
    def turns(self) -> list[Answer]:
        """All answers of the dialogue, in order."""
        return [self, *self.further]


class Teacher(Protocol):
    """Anything that answers prompts in token ids."""

    def answer(self, prompts: Iterable[Prompts], stop: Stop | None = None) -> Iterator[tuple[tuple[int, int], Answer]]:
        """Each answer with the numbers of its group and of its prompt in the group, in any order.

        An answer may be cut off where `stop` says that it need not go on.
        """
        ...


def as_answer(ids: list[int], end_ids: list[int], topk_ids: np.ndarray, topk_logprobs: np.ndarray) -> Answer:
    """Cut generated tokens after the first end token. That token becomes the template's end token, the first of `end_ids`."""
    length = next((index + 1 for index, token in enumerate(ids) if token in end_ids), len(ids))
    answer = Answer(
        ids[:length],
        not length or ids[length - 1] not in end_ids,
        topk_ids[:length].astype(np.int32),
        topk_logprobs[:length].astype(np.float16),
    )
    if not answer.truncated and answer.ids[-1] != end_ids[0]:
        end_as_template(answer, end_ids)
    return answer


def end_as_template(answer: Answer, end_ids: list[int]) -> None:
    """Make the last token the template's end token, in place. It gets the sum of the probabilities of all end tokens."""
    answer.ids[-1] = end_ids[0]
    row, values = answer.topk_ids[-1].copy(), answer.topk_logprobs[-1].astype(np.float64)
    ends = np.isin(row, end_ids)
    if ends.any():
        total = np.logaddexp.reduce(values[ends])
        kept = int(np.argmax(row == end_ids[0])) if end_ids[0] in row else int(np.argmax(ends))
        values[ends] = IMPOSSIBLE
        row[kept], values[kept] = end_ids[0], total
        order = np.argsort(-values, kind="stable")
        answer.topk_ids[-1], answer.topk_logprobs[-1] = row[order], values[order]


def all_end_ids(generation_config: Any, end_id: int) -> list[int]:
    """The template's end token, then the others at which the LLM may end an answer (Llama 3 has three)."""
    others = getattr(generation_config, "eos_token_id", None)
    others = others if isinstance(others, (list, tuple)) else [] if others is None else [others]
    return list(dict.fromkeys([end_id, *map(int, others)]))


class TransformersTeacher:
    """Generation with a model of transformers, `rows` prompts at a time (`mtbi.llm.decode`)."""

    def __init__(self, llm: Any, end_id: int, top_k: int, temperature: float = 0.0, rows: int = 64) -> None:
        self.llm = llm.eval()
        self.end_ids = all_end_ids(llm.generation_config, end_id)
        self.top_k = min(top_k, llm.config.get_text_config().vocab_size)
        self.temperature, self.rows = temperature, rows

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each row, (rows,), from logits (rows, vocabulary): the most probable one, or a sample."""
        if not self.temperature:
            return logits.argmax(-1)
        return (logits / self.temperature).softmax(-1).multinomial(1)[:, 0]

    def answer(self, prompts: Iterable[Prompts], stop: Stop | None = None) -> Iterator[tuple[tuple[int, int], Answer]]:
        """As `Teacher.answer`. Answers depend on the other prompts by rounding only."""
        from mtbi.llm.decode import decode

        for decoded in decode(self.llm, prompts, self.end_ids, self.rows, self.top_k, self.choose, stop):
            yield decoded.prompt, as_answer(decoded.ids, self.end_ids, decoded.topk_ids, decoded.topk_logprobs)


class VllmTeacher:
    """Generation by vLLM, where it is installed."""

    def __init__(self, model: ModelConfig, config: BehaviourConfig, end_ids: list[int]) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                "behaviour.backend is `vllm`, which is not installed: pip install 'mtbi[vllm]', or use `transformers`."
            ) from error
        self.llm = LLM(
            resolve_llm(model.llm),
            max_logprobs=config.top_k,
            trust_remote_code=model.trust_remote_code,
            tensor_parallel_size=config.tensor_parallel,
            enable_prefix_caching=True,
        )
        self.end_ids, self.top_k, self.temperature = end_ids, config.top_k, config.temperature

    def answer(self, prompts: Iterable[Prompts], stop: Stop | None = None) -> Iterator[tuple[tuple[int, int], Answer]]:
        """As `Teacher.answer`; `stop` is not used. vLLM makes the batches, and shares the beginnings of prompts."""
        from vllm import SamplingParams, TokensPrompt

        numbered = enumerate(prompts)
        while groups := list(islice(numbered, VLLM_GROUPS)):
            keys, texts, settings = [], [], []
            for number, group in groups:
                for index, (end, limit) in enumerate(zip(group.ends, group.limits, strict=True)):
                    keys.append((number, index))
                    texts.append(TokensPrompt(prompt_token_ids=[*group.start.tolist(), *end]))
                    settings.append(
                        SamplingParams(
                            temperature=self.temperature, max_tokens=limit, logprobs=self.top_k, stop_token_ids=self.end_ids
                        )
                    )
            for key, result in zip(keys, self.llm.generate(texts, settings), strict=True):
                yield key, self.as_answer(result.outputs[0])

    def as_answer(self, output: Any) -> Answer:
        """An answer from vLLM's completion. vLLM adds the sampled token if it is not among the likeliest; k are kept."""
        steps = [sorted(((v.logprob, i) for i, v in step.items()), reverse=True)[: self.top_k] for step in output.logprobs]
        ids = np.array([[i for _, i in step] for step in steps])
        values = np.array([[value for value, _ in step] for step in steps])
        return as_answer(list(output.token_ids), self.end_ids, ids, values)


def load_llm(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The text LLM. Raises UserError where it cannot be read, and where its architecture cannot become a speech LLM."""
    from transformers import AutoModelForCausalLM

    back_end.checked_shape(back_end.read_config(config))
    attention.register()
    try:
        llm: Any = AutoModelForCausalLM.from_pretrained(
            resolve_llm(config.llm),
            dtype=dtype,
            attn_implementation=attention.DENSE,
            trust_remote_code=config.trust_remote_code,
            device_map=None if torch.device(device).type == "cpu" else device,  # straight to a GPU
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.llm: no language model can be read from {config.llm!r}: {error}") from error
    back_end.check_model(llm)  # before hours of answers that could not be used
    return llm.to(device)


def generation_settings(path: str) -> Any:
    """The generation settings that come with an LLM. None where there are none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return None


def build_teacher(model: ModelConfig, config: BehaviourConfig, precision: str = "auto") -> Teacher | None:
    """The teacher that a recipe names. None where the corpus's right answers are imitated."""
    if config.answers == "gold":
        return None
    end_id = ChatFormat(load_llm_tokenizer(model.llm, model.trust_remote_code)).end_id
    if config.backend == "vllm":
        return VllmTeacher(model, config, all_end_ids(generation_settings(resolve_llm(model.llm)), end_id))
    if config.backend != "transformers":
        raise UserError(f"behaviour.backend: {config.backend!r} is not one of transformers, vllm")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    llm = load_llm(model, precisions.of(precision, device), device)
    return TransformersTeacher(llm, end_id, config.top_k, config.temperature, config.batch_size)
