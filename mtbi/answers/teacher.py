"""The teacher: the text LLM answers batches of prompts, with the log-probabilities of its likeliest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from mtbi.errors import UserError
from mtbi.llm import back_end
from mtbi.llm import precision as precisions
from mtbi.llm.chat_format import ChatFormat, load_llm_tokenizer, resolve_llm
from mtbi.recipe import BehaviourConfig, ModelConfig

IMPOSSIBLE = -1e4  # a log-probability that is 0 as a probability and fits into float16


@dataclass
class Answer:
    """One answer. The tokens that are not kept have together the probability 1 - Σ exp(topk_logprobs)."""

    ids: list[int]  #: token ids, with the template's end token unless the answer was cut off
    truncated: bool  #: cut off at the longest length
    topk_ids: np.ndarray  #: (tokens, k) int32
    topk_logprobs: np.ndarray  #: (tokens, k) float16, natural logarithm


class Teacher(Protocol):
    """Anything that answers prompts in token ids."""

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[Answer]:
        """Answers in the order of the prompts."""
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
    """Batched generation by transformers."""

    def __init__(self, llm: Any, end_id: int, top_k: int, temperature: float = 0.0) -> None:
        from transformers import GenerationConfig

        self.llm = llm.eval()
        self.end_ids = all_end_ids(llm.generation_config, end_id)
        # Without the settings that came with the weights, such as a repetition penalty.
        self.llm.generation_config = GenerationConfig(eos_token_id=self.end_ids)
        self.end_id = end_id
        self.top_k = min(top_k, llm.config.get_text_config().vocab_size)
        self.temperature = temperature

    @torch.no_grad()
    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[Answer]:
        """Answers in the order of the prompts. Padding is on the left, so they depend on the batch by rounding only."""
        longest = max(map(len, prompts))
        device = self.llm.device
        ids = torch.full((len(prompts), longest), self.end_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        out = self.llm.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            eos_token_id=self.end_ids,
            pad_token_id=self.end_id,
            return_dict_in_generate=True,
            output_logits=True,
            top_k=None,
            top_p=None,
            **sampling,
        )
        top = [step.float().log_softmax(-1).topk(self.top_k) for step in out.logits]
        topk_ids = torch.stack([step.indices for step in top], 1).cpu().numpy()
        topk_logprobs = torch.stack([step.values for step in top], 1).cpu().numpy()
        new = out.sequences[:, longest:].tolist()
        return [as_answer(tokens, self.end_ids, topk_ids[row], topk_logprobs[row]) for row, tokens in enumerate(new)]


class VllmTeacher:
    """Generation by vLLM, where it is installed."""

    def __init__(self, path: str, end_ids: list[int], top_k: int, temperature: float, trust_remote_code: bool) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                "behaviour.backend is `vllm`, which is not installed: pip install 'mtbi[vllm]', or use `transformers`."
            ) from error
        self.llm = LLM(path, max_logprobs=top_k, trust_remote_code=trust_remote_code)
        self.end_ids, self.top_k, self.temperature = end_ids, top_k, temperature

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[Answer]:
        """Answers in the order of the prompts. vLLM makes the batches."""
        from vllm import SamplingParams, TokensPrompt

        settings = SamplingParams(
            temperature=self.temperature, max_tokens=max_new_tokens, logprobs=self.top_k, stop_token_ids=self.end_ids
        )
        answers = []
        for result in self.llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], settings):
            output = result.outputs[0]
            # vLLM adds the sampled token if it is not among the likeliest. Exactly k are kept, the likeliest first.
            steps = [sorted(((v.logprob, i) for i, v in step.items()), reverse=True)[: self.top_k] for step in output.logprobs]
            ids = np.array([[i for _, i in step] for step in steps])
            values = np.array([[value for value, _ in step] for step in steps])
            answers.append(as_answer(list(output.token_ids), self.end_ids, ids, values))
        return answers


def load_llm(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The text LLM. Raises UserError where it cannot be read, and where its architecture cannot become a speech LLM."""
    from transformers import AutoModelForCausalLM

    back_end.check_config(back_end.LLMShape.of(back_end.read_config(config)))
    try:
        llm: Any = AutoModelForCausalLM.from_pretrained(
            resolve_llm(config.llm), dtype=dtype, trust_remote_code=config.trust_remote_code
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
        path = resolve_llm(model.llm)
        end_ids = all_end_ids(generation_settings(path), end_id)
        return VllmTeacher(path, end_ids, config.top_k, config.temperature, model.trust_remote_code)
    if config.backend != "transformers":
        raise UserError(f"behaviour.backend: {config.backend!r} is not one of transformers, vllm")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    llm = load_llm(model, precisions.of(precision, device), device)
    return TransformersTeacher(llm, end_id, config.top_k, config.temperature)
