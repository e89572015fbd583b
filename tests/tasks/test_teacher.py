"""The text LLM that answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model import families

from mtbi.errors import UserError
from mtbi.recipe import ModelConfig
from mtbi.tasks import teacher
from mtbi.tasks.teacher import TransformersTeacher


def test_an_llm_beside_a_vision_encoder_answers() -> None:
    llm = families.build(families.RIGHT["gemma3 with vision"](), "sdpa")
    [answer] = TransformersTeacher(llm, end_id=2, top_k=100).answer([[5, 6, 7]], max_new_tokens=3)
    assert answer.topk_ids.shape == (len(answer.ids), families.SIZES["vocab_size"])


def test_an_llm_that_nothing_could_be_trained_with_is_not_asked(tmp_path: Path) -> None:
    families.REFUSED["lfm2"][0]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.llm: lfm2 has layers that are no attention \(conv\)"):
        teacher.load_llm(ModelConfig(llm=str(tmp_path)), torch.float32, "cpu")
