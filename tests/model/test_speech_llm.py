from __future__ import annotations

import pytest
import torch
from tiny_models import build, train_on
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import WhisperConfig, WhisperModel

from mtbi.errors import UserError
from mtbi.llm import attention
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import AdapterConfig, EncoderConfig, LoraConfig, LossConfig, ModelConfig

CPU = torch.device("cpu")


def test_only_the_adapter_trains(folder, heard):
    model = build(folder).train()
    assert all(name.startswith("adapter.") for name in model.trainable_parameters())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = train_on(model, heard, steps=8, rate=1e-2)
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.grad is None or parameter.requires_grad, name


def test_lora_and_a_trained_encoder(folder, heard):
    plain = build(folder).eval()
    model = build(folder, llm_lora=LoraConfig(rank=2)).eval()
    model.adapter.load_state_dict(plain.adapter.state_dict())
    torch.testing.assert_close(model(heard).loss, plain(heard).loss)  # a fresh update changes nothing
    names = set(model.trainable_parameters())
    assert {name.split(".")[0] for name in names} == {"adapter", "llm"}
    assert all("lora_" in name for name in names if name.startswith("llm."))
    model.train()(heard).loss.backward()
    assert any(p.grad.norm() > 0 for name, p in model.trainable_parameters().items() if name.startswith("llm."))

    config = ModelConfig(llm=folder, encoder=EncoderConfig("demo", trainable=True), adapter=AdapterConfig(stack=2))
    model = build_speech_llm(config, LossConfig(ce=1.0, kl=0.0), torch.float32, CPU, tasks=3).train()
    model(heard).loss.backward()
    assert model.encoder.project.weight.grad.norm() > 0


def test_lora_on_the_encoder(folder, heard, tmp_path):
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    whisper = WhisperConfig(d_model=32, vocab_size=64, max_source_positions=150, pad_token_id=0, **sizes, **layers)
    WhisperModel(whisper).save_pretrained(tmp_path / "whisper")
    config = ModelConfig(
        folder, EncoderConfig(str(tmp_path / "whisper")), AdapterConfig(stack=2), encoder_lora=LoraConfig(rank=2)
    )
    model = build_speech_llm(config, LossConfig(ce=1.0, kl=0.0), torch.float32, CPU, tasks=3).train()
    model(heard).loss.backward()
    trained = {name: p.grad for name, p in model.trainable_parameters().items() if name.startswith("encoder.")}
    assert trained
    assert all("lora_" in name for name in trained)
    assert all(grad.norm() > 0 for name, grad in trained.items() if "lora_B" in name)
    with pytest.raises(UserError, match="the demo encoder takes none"):
        build(folder, encoder_lora=LoraConfig(rank=2))


def test_whispers_sinusoids_stay_as_they_are(folder, tmp_path):
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    whisper = WhisperConfig(d_model=32, vocab_size=64, max_source_positions=150, pad_token_id=0, **sizes, **layers)
    WhisperModel(whisper).save_pretrained(tmp_path / "whisper")
    config = ModelConfig(folder, EncoderConfig(str(tmp_path / "whisper"), trainable=True), AdapterConfig(stack=2))
    names = set(build_speech_llm(config, LossConfig(), torch.float32, CPU).trainable_parameters())
    assert "encoder.encoder.conv1.weight" in names
    assert "encoder.encoder.embed_positions.weight" not in names


class Products(TorchDispatchMode):
    """The shapes of all matrix products that are computed while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.shapes.add(tuple(sorted(out.shape[-2:])))
        return out


@pytest.mark.parametrize("frozen", [True, False])
def test_no_gradient_of_a_frozen_weight_is_ever_computed(make_model, packed, frozen):
    """The gradient of a weight is a product of the weight's shape; with an LLM that trains this check finds them."""
    model = make_model()
    model.llm.requires_grad_(not frozen)
    others = {name: tuple(sorted(p.shape)) for name, p in model.named_parameters() if p.dim() == 2 and "adapter" not in name}
    trained = {tuple(sorted(p.shape)) for p in model.adapter.parameters()}
    loss = model(packed).loss
    with Products() as products:
        loss.backward()
    found = {name for name, shape in others.items() if shape in products.shapes - trained}
    assert products.shapes & trained
    assert bool(found) != frozen, found


def test_frozen_parts_stay_in_evaluation_mode(folder):
    model = build(folder).train()
    assert model.adapter.training
    assert not model.encoder.training
    assert not model.llm.training
    assert not model.eval().adapter.training


def test_bfloat16_keeps_buffers_in_full(folder, heard):
    model = build(folder).bfloat16()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
    out = model(heard)
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    reference = build(folder)(heard).loss
    assert abs(out.loss - reference) / reference < 0.02


def test_a_fresh_adapter_speaks_at_the_loudness_of_the_embeddings(folder, heard):
    model = build(folder)
    frames, counts = model.encode_speech(heard.waveforms, heard.waveform_lengths)
    rms = frames[0, : counts[0]].square().mean().sqrt() / model.llm.get_input_embeddings().weight.square().mean().sqrt()
    assert 0.5 < rms < 2


def test_the_shipped_models_are_the_default():
    model = build_speech_llm(ModelConfig(), LossConfig(), torch.float32, CPU)
    assert model.llm.config._attn_implementation == attention.DENSE
    assert model.encoder.width == 144
