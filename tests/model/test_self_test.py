"""Every family either computes in packed rows what it computes for each dialogue alone, or is refused with a sentence."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from tiny_models import ToyEncoder, train_on
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mtbi.batches.batch import Batch
from mtbi.errors import UserError
from mtbi.llm import attention, back_end
from mtbi.llm.attention import DENSE, FLASH, FLEX
from mtbi.llm.back_end import LLMShape
from mtbi.model import self_test
from mtbi.model.adapter import build_adapter
from mtbi.model.generate import generate
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import AdapterConfig, LossConfig


@pytest.mark.parametrize("name", families.RIGHT)
def test_packed_rows_are_the_dialogues_alone(name: str) -> None:
    config = families.RIGHT[name]()
    back_end.check_config(LLMShape.of(config))
    llm = families.build(config, DENSE)
    assert max(self_test.differences(llm)) < 1e-5
    self_test.check(llm, name)


@pytest.mark.parametrize("name", families.RIGHT)
def test_speech_trains_and_answers(name: str, packed: Batch) -> None:
    llm = families.plain(families.RIGHT[name](), DENSE)
    adapter = build_adapter(AdapterConfig(stack=2), ToyEncoder.width, 32, 0.5)
    model = SpeechLLMModule(ToyEncoder().requires_grad_(False), adapter, llm, LossConfig(ce=1.0, kl=0.5, chunk=7), tasks=3)
    losses = train_on(model, packed, 4, 1e-2)
    assert losses[-1] < losses[0]
    prompts = [[torch.tensor([3, 4]), np.linspace(-1, 1, 900, dtype=np.float32), torch.tensor([5])], [torch.tensor([6, 7])]]
    together = generate(model, prompts, 3, end_id=2)
    assert together == [answer for prompt in prompts for answer in generate(model, [prompt], 3, end_id=2)]


@pytest.mark.parametrize("name", families.REFUSED)
def test_other_families_are_refused(name: str) -> None:
    make, sentence = families.REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        try_all(make())


def try_all(config: object) -> None:
    back_end.check_config(LLMShape.of(config))
    back_end.check_class(config)
    llm = families.build(config, DENSE)
    self_test.check(llm, "it")


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("back_end_name", [FLASH, FLEX])
def test_the_other_back_ends_or_a_sentence(name: str, back_end_name: str) -> None:
    config = families.RIGHT[name]()
    if name == "gpt_oss" and back_end_name == FLASH:
        config.layer_types = ["full_attention", "full_attention"]
    llm = families.build(config, back_end_name)
    if name == "deepseek_v3" and back_end_name == FLASH:
        with pytest.raises(UserError, match="value heads have 8 numbers, its query heads 16"):
            self_test.check(llm, name)
        return
    assert max(self_test.differences(llm)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma3"])
def test_rounding_in_half_precision_is_within_the_bound(name: str) -> None:
    llm = families.build(families.RIGHT[name](), DENSE).bfloat16()
    assert 1e-4 < max(self_test.differences(llm)) < self_test.BOUNDS[torch.bfloat16] / 4
    self_test.check(llm, name)


def test_nothing_changes_by_the_test() -> None:
    llm = families.build(families.RIGHT["gemma3 with vision"](), DENSE).train()
    llm.get_decoder().layers[0].eval()  # as LoRA's dropout may be in training beside a frozen LLM
    modes = [module.training for module in llm.modules()]
    state, names = (
        torch.get_rng_state(),
        [module.config._attn_implementation for module in llm.modules() if hasattr(module, "config")],
    )
    self_test.check(llm, "gemma3")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.config._attn_implementation for module in llm.modules() if hasattr(module, "config")] == names
    assert [module.training for module in llm.modules()] == modes
    assert len(set(modes)) == 2


@pytest.fixture
def wrong_back_end():
    """Registers another function in the place of a back end."""
    yield AttentionInterface.register
    attention.register()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_that_are_left_out_are_caught(wrong_back_end, dtype: torch.dtype) -> None:
    llm = families.build(families.RIGHT["gpt_oss"](), DENSE).to(dtype)
    right = attention._as_back_end(attention.dense_attention)
    wrong_back_end(DENSE, lambda *arguments, s_aux=None, **kwargs: right(*arguments, **kwargs))
    with pytest.raises(UserError, match=r"model.llm: 'mine' \(GptOssForCausalLM\) gives hidden states .* off for packed rows"):
        self_test.check(llm, "mine")


def test_answers_without_sinks_are_caught(wrong_back_end) -> None:
    llm = families.build(families.RIGHT["gpt_oss"](), DENSE)
    right = attention._as_back_end(attention.dense_attention)

    def answers_by_sdpa(*arguments, **kwargs):
        return right(*arguments, **kwargs) if kwargs.get("packing") else sdpa_attention_forward(*arguments, **kwargs)

    wrong_back_end(DENSE, answers_by_sdpa)
    with pytest.raises(UserError, match="off for answers alone"):
        self_test.check(llm, "mine")


def test_a_layer_that_mixes_dialogues_is_caught_also_where_no_configuration_says_so() -> None:
    llm = families.build(families.REFUSED["minimax"][0](), DENSE)
    with pytest.raises(UserError, match="off for packed rows"):
        self_test.check(llm, "mine")


def test_an_unknown_argument_of_attention_is_refused() -> None:
    llm = families.build(families.RIGHT["llama"](), DENSE)
    ids = torch.arange(3, 8)[None]
    assert llm(ids, position_bias=None).logits.isfinite().all()
    with pytest.raises(UserError, match="LlamaAttention: attention with position_bias is not supported"):
        llm(ids, position_bias=torch.zeros(1))


def test_answers_of_a_model_with_sinks_are_those_of_eager_attention() -> None:
    ids = torch.arange(3, 12)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    found = []
    for name in ("eager", DENSE):
        llm = families.build(families.RIGHT["gpt_oss"](), name)
        settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "output_logits": True}
        found.append(llm.generate(ids, attention_mask=mask, return_dict_in_generate=True, **settings).logits)
    torch.testing.assert_close(torch.stack(found[1]), torch.stack(found[0]), rtol=1e-4, atol=1e-5)
