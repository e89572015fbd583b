from __future__ import annotations

import random

from transformers import AutoModelForCausalLM, AutoTokenizer

from mtbi.demo.text_llm import make_batch, make_tokenizer, measure, random_dialogue, read_wordings
from mtbi.llm.chat_format import resolve_llm


def test_the_shipped_llm_answers_fresh_dialogues() -> None:
    folder = resolve_llm("demo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert measure(model, tokenizer.get_vocab(), read_wordings(), random.Random(99)) > 0.98


def test_training_data_is_what_the_chat_template_makes() -> None:
    wordings = read_wordings()
    tokenizer = make_tokenizer(wordings)
    words, in_loss, _ = random_dialogue(wordings, random.Random(3))
    ids, labels, _ = make_batch([(words, in_loss, in_loss)], tokenizer.get_vocab())
    user = " ".join(words[2 : words.index("<|end|>")])
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": user}], add_generation_prompt=True, return_dict=False)
    assert ids[0, : len(rendered)].tolist() == rendered
    assert tokenizer.unk_token_id not in ids
    assert (labels[0] >= 0).sum() == sum(in_loss)
