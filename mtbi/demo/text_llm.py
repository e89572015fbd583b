"""Train the miniature text LLM from text alone: `python -m mtbi.demo.text_llm OUT`.

A 4-layer Llama (0.9 M parameters) learns to answer the tasks of digits.yaml about digit strings. Fillers ("um") are scattered
among the digits, and a little noise is added to their embeddings. Like a large LLM it then tolerates extra and imperfect
tokens. The output is an ordinary Hugging Face folder (safetensors, tokenizer, chat template). Training takes about 15 minutes
on 2 cores. This script with its default seed made the shipped weights in `mtbi/demo/weights/text_llm`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from mtbi.answers import task_library
from mtbi.demo import world

SPECIAL = ("<pad>", "<unk>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IGNORE = -100
CONSTRAINED_SHARE = 0.25  # share of questions with a constraint, as in "reverse the digits in french"


def read_wordings() -> dict[str, list[str]]:
    """Every wording of every digit task, also the held-out ones: the text LLM learns them all."""
    return {name: list(task.wordings) for name, task in task_library.load(["digits"]).items()}


def make_tokenizer(wordings: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose vocabulary is exactly the words of the miniature world."""
    words = {*world.DIGITS, *world.FRENCH, *world.FILLERS, "even", "odd", "yes", "no", *map(str, range(10))}
    words |= {word for texts in wordings.values() for text in texts for word in text.split()}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[4:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def random_dialogue(wordings: dict[str, list[str]], rng: random.Random) -> tuple[list[str], list[bool], list[bool]]:
    """One dialogue as words. One flag a word says whether the loss counts it, another whether it belongs to the string."""
    digits = world.random_digits(rng)
    density = 0.0 if rng.random() < 0.25 else rng.uniform(0.0, 3.0)
    string = world.with_fillers(digits, rng, density).split() if density else [world.DIGITS[d] for d in digits]
    words, in_loss, in_string = ["<s>"], [False], [False]

    def add(text: list[str], counted: bool = False, of_string: bool = False) -> None:
        words.extend(text)
        in_loss.extend([counted] * len(text))
        in_string.extend([of_string] * len(text))

    for turn in range(2 if rng.random() < 0.15 else 1):
        constrained = rng.random() < CONSTRAINED_SHARE
        task = rng.choice([name for name in wordings if ("/" in name) == constrained])
        prompt = rng.choice(wordings[task]).split()
        add(["<|user|>"])
        if turn > 0:
            add(prompt)
        elif rng.random() < 0.2:
            add(prompt)
            add(string, of_string=True)
        else:
            add(string, of_string=True)
            add(prompt)
        add(["<|end|>", "<|assistant|>"])
        add([*world.answer_about(task, digits).split(), "<|end|>"], counted=True)
    return words, in_loss, in_string


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_batch(dialogues: list[tuple[list[str], list[bool], list[bool]]], vocabulary: dict[str, int]) -> Batch:
    """Token ids, labels and the mask of the string's words, each `(dialogues, tokens)`, padded on the right."""
    shape = len(dialogues), max(len(words) for words, _, _ in dialogues)
    ids = torch.full(shape, vocabulary["<pad>"])
    labels = torch.full(shape, IGNORE)
    in_string = torch.zeros(shape, dtype=torch.bool)
    for row, (words, in_loss, of_string) in enumerate(dialogues):
        tokens = torch.tensor([vocabulary[word] for word in words])
        ids[row, : len(words)] = tokens
        labels[row, : len(words)] = torch.where(torch.tensor(in_loss), tokens, IGNORE)
        in_string[row, : len(words)] = torch.tensor(of_string)
    return ids, labels, in_string


def stream_batches(
    size: int, vocabulary: dict[str, int], wordings: dict[str, list[str]], rng: random.Random
) -> Iterator[Batch]:
    """Endless batches of dialogues of similar length: 16 batches are sorted by length together, so that little is padding."""
    while True:
        dialogues = sorted((random_dialogue(wordings, rng) for _ in range(16 * size)), key=lambda dialogue: len(dialogue[0]))
        starts = list(range(0, len(dialogues), size))
        rng.shuffle(starts)
        for start in starts:
            yield make_batch(dialogues[start : start + size], vocabulary)


def train(out: Path, steps: int, batch_size: int, learning_rate: float, seed: int) -> float:
    """Train and save the text LLM. Returns the share of new dialogues in which every answer token is right."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    wordings = read_wordings()
    tokenizer = make_tokenizer(wordings)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=100, num_training_steps=steps)
    vocabulary = tokenizer.get_vocab()
    bar = tqdm(zip(range(steps), stream_batches(batch_size, vocabulary, wordings, rng), strict=False), total=steps, unit="step")
    for step, (ids, labels, in_string) in bar:
        embeddings = model.get_input_embeddings()(ids)
        scale = 0.3 * embeddings.detach().std() * torch.rand(len(ids), 1, 1)
        embeddings = embeddings + torch.randn_like(embeddings) * scale * in_string[..., None]
        logits = model(inputs_embeds=embeddings).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    return measure(model.eval(), vocabulary, wordings, random.Random(seed + 1))


@torch.no_grad()
def measure(model: LlamaForCausalLM, vocabulary: dict[str, int], wordings: dict[str, list[str]], rng: random.Random) -> float:
    """Share of 4,000 new dialogues, fillers included, in which greedy decoding would answer everything right."""
    right = 0
    for _ in range(8):
        ids, labels, _ = make_batch([random_dialogue(wordings, rng) for _ in range(500)], vocabulary)
        guess = model(input_ids=ids).logits[:, :-1].argmax(-1)
        right += int(((guess == labels[:, 1:]) | (labels[:, 1:] == IGNORE)).all(1).sum())
    return right / 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    accuracy = train(options.out, options.steps, options.batch_size, options.learning_rate, options.seed)
    print(f"{options.out}: {accuracy:.2%} of 4,000 fresh dialogues answered exactly")


if __name__ == "__main__":
    main()
