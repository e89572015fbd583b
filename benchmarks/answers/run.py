"""The pace of `mtbi behave` against plain batches. `python benchmarks/answers/run.py MANIFEST --recipe R [--out FOLDER]`

Both arms answer the same questions about the same transcripts with the same LLM, one after the other in each turn.

- `plain`: batches of questions with the same limit, padded on the left, by transformers' `generate`. The logits of all
  steps are kept, and the likeliest tokens are taken from them in the end. Earlier versions of `mtbi behave` did this
- `decode`: this package (`mtbi.llm.decode`)

The machine may be shared, so the seconds of processor time are given beside those of the clock. The results also say how many
answers have the same tokens in both arms, and how many `behaviour.filter` cut short, with the same tokens up to there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import header, save

from mtbi import recipe as recipes
from mtbi.answers.ask import ask
from mtbi.answers.questions import Question, chosen_tasks, draw_questions
from mtbi.answers.teacher import Answer, TransformersTeacher, as_answer, build_teacher
from mtbi.corpus import manifest
from mtbi.llm.chat_format import ChatFormat, read_chat, resolve_llm
from mtbi.recipe import Recipe


@torch.no_grad()
def plain(
    llm: AutoModelForCausalLM, questions: list[Question], recipe: Recipe, chat: ChatFormat, end_ids: list[int]
) -> Iterator[tuple[Question, Answer]]:
    """The answers of batches that `generate` computes to their last row's end."""
    size, top_k = recipe.behaviour.batch_size, recipe.behaviour.top_k
    ordered = sorted(questions, key=lambda q: (q.max_new_tokens, len(q.transcript) + len(q.prompt)))
    for limit, group in groupby(ordered, key=lambda question: question.max_new_tokens):
        same = list(group)
        for batch in (same[first : first + size] for first in range(0, len(same), size)):
            prompts = [chat.dialogue_ids(question.transcript, question.prompt) for question in batch]
            longest = max(map(len, prompts))
            ids = torch.tensor([[chat.end_id] * (longest - len(prompt)) + prompt for prompt in prompts])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            out = llm.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, eos_token_id=end_ids,
                pad_token_id=chat.end_id, return_dict_in_generate=True, output_logits=True, top_k=None, top_p=None,
            )  # fmt: skip
            top = [step.float().log_softmax(-1).topk(top_k) for step in out.logits]
            top_ids = torch.stack([step.indices for step in top], 1).numpy()
            logprobs = torch.stack([step.values for step in top], 1).numpy()
            for row, question in enumerate(batch):
                yield question, as_answer(out.sequences[row, longest:].tolist(), end_ids, top_ids[row], logprobs[row])


def measured(call: Callable[[], Iterator[tuple[Question, Answer]]]) -> tuple[dict[tuple, list[int]], float, float]:
    """The answers' tokens by question, and the seconds of the clock and of the processor."""
    began = time.perf_counter(), time.process_time()
    answers = {question.key: answer.ids for question, answer in call()}
    return answers, time.perf_counter() - began[0], time.process_time() - began[1]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--questions", type=int, default=32, help="questions of a turn (default: 32)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for results.json")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    recipe = recipes.load(options.recipe, options.overrides)
    chat, tasks = read_chat(recipe), chosen_tasks(recipe.behaviour)
    utterances = manifest.read_manifest(options.manifest)
    asked = [
        q for one in utterances for q in draw_questions(one, tasks, recipe.behaviour, chat, recipe.seed) if q.source == "llm"
    ]
    teacher = build_teacher(recipe.model, recipe.behaviour, recipe.precision)
    assert isinstance(teacher, TransformersTeacher)
    llm = AutoModelForCausalLM.from_pretrained(resolve_llm(recipe.model.llm), dtype=teacher.llm.dtype).eval()
    turns, count, same, shorter, tokens = [], 0, 0, 0, 0
    for turn in range(options.turns):
        questions = asked[turn * options.questions : (turn + 1) * options.questions]
        ours, *pace = measured(lambda: ask(questions, recipe.behaviour, teacher, chat))  # noqa: B023
        theirs, *before = measured(lambda: plain(llm, questions, recipe, chat, teacher.end_ids))  # noqa: B023
        same += sum(ours[key] == ids for key, ids in theirs.items())
        count += len(theirs)
        shorter += sum(ours[key] != ids and ours[key] == ids[: len(ours[key])] for key, ids in theirs.items())
        tokens += sum(map(len, theirs.values()))
        turns.append({"decode_s": pace, "plain_s": before})
        print(turns[-1], flush=True)
    ratios = [[old / new for old, new in zip(turn["plain_s"], turn["decode_s"], strict=True)] for turn in turns]
    record = {
        **header("torch", "transformers"),
        "llm": Path(recipe.model.llm).name,
        "threads": torch.get_num_threads(),
        "questions_a_turn": options.questions,
        "answers": count,
        "answer_tokens": tokens,
        "answers_with_the_same_tokens": same,
        "answers_cut_short_by_the_filter": shorter,
        "seconds_of_clock_and_processor_by_turn": turns,
        "times_faster_by_clock_and_processor": [round(statistics.median(column), 2) for column in zip(*ratios, strict=True)],
    }
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
