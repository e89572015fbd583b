"""Packed rows with shared prefixes must give what separate, padded sequences give, in every back end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mtbi.batches.batch import Batch
from mtbi.errors import UserError
from mtbi.llm import attention
from mtbi.llm import packing as packing_module
from mtbi.llm.packing import Packing

BACK_ENDS = [attention.DENSE, attention.FLASH]  # FLEX, which trains on GPUs only, has tests of its own


def separate_hidden(model, batch: Batch) -> Tensor:
    """Hidden states at the targets when every prefix + branch is a sequence of its own, padded, under plain sdpa."""
    frames, _ = model.encode_speech(batch.waveforms, batch.waveform_lengths)
    flat = model.embed(batch.token_ids).flatten(0, 1)
    flat = flat.index_put((batch.audio_slot,), frames[batch.audio_clip, batch.audio_frame])
    tokens = batch.token_ids.shape[1]
    group, branch = batch.group.flatten(), batch.branch.flatten()
    row = torch.arange(len(group)) // tokens
    sequences = []
    for key in {(int(row[slot]), int(group[slot]), int(branch[slot])) for slot in batch.target_slot}:
        mine = (row == key[0]) & (group == key[1]) & ((branch == 0) | (branch == key[2]))
        sequences.append(mine.nonzero()[:, 0])
    longest = max(map(len, sequences))
    inputs = torch.stack([torch.nn.functional.pad(flat[s], (0, 0, 0, longest - len(s))) for s in sequences])
    mask = torch.stack([(torch.arange(longest) < len(s)).long() for s in sequences])
    hidden = model.llm.get_decoder()(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    where = {}
    for number, sequence in enumerate(sequences):
        own = set(batch.target_slot.tolist()) & set(sequence.tolist())
        where.update({slot: (number, sequence.tolist().index(slot)) for slot in own})
    return torch.stack([hidden[where[slot]] for slot in batch.target_slot.tolist()])


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable_parameters().items()}


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_packed_rows_equal_separate_sequences(make_model, packed, kind, back_end):
    if kind == "gemma3" and back_end == attention.FLASH:
        pytest.skip("flash refuses this model's sliding window: see test_flash_refuses_a_short_sliding_window")
    plain = make_model(kind, "sdpa")
    expected = plain.head(separate_hidden(plain, packed), packed)
    expected_gradients = gradients(plain, expected.loss)
    model = make_model(kind, back_end)
    out = model(packed)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model, out.loss).items():
        difference = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert difference < 1e-5, name
        assert gradient.norm() > 0, name


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_packed_rows_equal_separate_sequences_in_half_precision(make_model, packed, kind, back_end):
    found = []
    for name in ("sdpa", back_end):
        model = make_model(kind, name).bfloat16()
        model.encoder.float()  # its input is
        out = model(packed) if name == back_end else model.head(separate_hidden(model, packed), packed)
        found.append(torch.cat([gradient.float().flatten() for gradient in gradients(model, out.loss).values()]))
    assert (found[1] - found[0]).norm() < 1e-2 * found[0].norm()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_answer_logits_equal_those_of_separate_sequences(make_model, packed, back_end):
    plain, model, seen = make_model("llama", "sdpa"), make_model("llama", back_end), []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(packed)
    expected = plain.llm.lm_head(separate_hidden(plain, packed))
    torch.testing.assert_close(model.llm.lm_head(seen[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_branch_and_a_group_do_not_leak_into_others(make_model, packed, back_end):
    model = make_model("llama", back_end)
    seen = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(packed)
    changed = (packed.group == 0) & (packed.branch == 1)
    changed[1] = False
    model(replace(packed, token_ids=torch.where(changed, packed.token_ids + 1, packed.token_ids)))
    own = changed.flatten()[packed.target_slot]
    assert own.any()
    assert torch.equal(seen[0][~own], seen[1][~own])
    assert not torch.isclose(seen[0][own], seen[1][own]).all()


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_dense_gives_the_same_in_one_call_a_group_and_in_two(make_model, packed, kind, monkeypatch):
    found = []
    for worth in (0, 10**9):
        monkeypatch.setattr(packing_module, "WORTH_A_CALL", worth)
        packing = Packing(packed.group, packed.branch, packed.position_ids)
        counts = [len(stretch.calls) for row in packing.stretches(None, torch.float32) for stretch in row if stretch.calls]
        assert counts == ([2, 2, 2, 1, 2] if worth == 0 else [1] * 5)  # one group has no branch
        model = make_model(kind)
        out = model(packed)
        found.append([out.loss, *gradients(model, out.loss).values()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_row_of_padding_and_a_batch_of_padding(make_model, pack_rows, back_end):
    model = make_model("llama", back_end)
    alone = model(pack_rows([[(900, [6, 5])]], 40))
    beside = model(pack_rows([[(900, [6, 5])], []], 40))
    torch.testing.assert_close(beside, alone)
    nothing = model(pack_rows([[], []], 40))
    assert nothing.loss == 0
    assert nothing.weight == 0
    assert all((gradient == 0).all() for gradient in gradients(model, nothing.loss).values())


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_one_long_group_beside_many_short_ones(make_model, pack_rows, back_end):
    rows = [[(320, [2])] * 8 + [(160, [60])], [(900, [6, 5])]]
    batch, plain, model = pack_rows(rows, 160), make_model("llama", "sdpa"), make_model("llama", back_end)
    torch.testing.assert_close(model(batch).loss, plain.head(separate_hidden(plain, batch), batch).loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@torch.no_grad()
def test_flex_computes_what_dense_does(make_model, packed, pack_rows, kind):
    dense, flex = make_model(kind, attention.DENSE), make_model(kind, attention.FLEX)
    for batch in (packed, pack_rows([[(900, [6, 5])], []], 40), pack_rows([[(320, [2])] * 8 + [(160, [60])]], 160)):
        torch.testing.assert_close(flex(batch), dense(batch), rtol=1e-5, atol=1e-5)


def test_flash_refuses_a_short_sliding_window(make_model, packed):
    with pytest.raises(UserError, match="sliding window"):
        make_model("gemma3", attention.FLASH)(packed)


def test_capped_scores_are_refused(make_model, packed):
    with pytest.raises(UserError, match="softcap"):
        make_model("gemma2", attention.DENSE)(packed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_kernel_on_a_gpu_equals_the_reference(pack_rows):
    batch = pack_rows([[(2000, [8, 3]), (500, []), (640, [5, 5])], [(900, [6, 5, 4]), (320, [4])]], 48)
    torch.manual_seed(0)
    states = [torch.randn(2 * 48, heads, 64) for heads in (8, 2, 2)]
    results = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        packing = Packing(*(tensor.to(device) for tensor in (batch.group, batch.branch, batch.position_ids)))
        inputs = [state.bfloat16().to(device, dtype).requires_grad_() for state in states]
        out = attention.SharedPrefixAttention.apply(*inputs, packing, 0.125)
        out.backward(torch.ones_like(out))
        results.append([tensor.float().cpu() for tensor in (out, *(state.grad for state in inputs))])
    for mine, reference in zip(results[1], results[0], strict=True):
        assert (mine - reference).norm() / reference.norm() < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_flex_on_a_gpu_has_the_gradients_of_dense(make_model, packed):
    batch, found = packed.to(torch.device("cuda")), []
    for back_end in (attention.DENSE, attention.FLEX):
        model = make_model("llama", back_end).cuda()
        found.append(gradients(model, model(batch).loss))
    for name, expected in found[0].items():
        assert (found[1][name] - expected).norm() / expected.norm() < 1e-4, name
