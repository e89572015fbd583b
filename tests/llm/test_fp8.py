from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import train_on
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mtbi import recipe as recipes
from mtbi.engine import memory
from mtbi.engine.ds_config import read_ds_config
from mtbi.errors import UserError
from mtbi.hf.modeling import MtbiForConditionalGeneration
from mtbi.llm import fp8
from mtbi.llm.fp8 import Fp8Linear
from mtbi.llm.last_layer import decoder_layers
from mtbi.llm.load import load_llm
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import AdapterConfig, EncoderConfig, LoraConfig, LossConfig, ModelConfig
from mtbi.use.export import export
from mtbi.use.open_run import open_run

CPU = torch.device("cpu")


def linear(width: int = 96, out: int = 80, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias).requires_grad_(False)


def dequantised(layer: Fp8Linear) -> torch.Tensor:
    return layer.weight.float() * layer.scale


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_near_the_exact_one(dtype, bias):
    exact, x = linear(bias=bias).to(dtype), torch.randn(2, 5, 96).to(dtype)
    out = Fp8Linear(exact, CPU)(x)
    assert out.dtype == dtype
    assert out.shape == (2, 5, 80)
    assert 0.001 < error(out, exact.float()(x.float())) < 0.05


def test_loud_channels_stay_within_the_format():
    """A float keeps its relative precision below the loudest value, as long as it is no subnormal."""
    layer, loud = linear(), torch.randn(64, 96)
    loud[:, :3] *= 300
    assert error(Fp8Linear(layer, CPU)(loud), layer(loud)) < 0.05
    layer.weight[:, 5] *= 300
    quiet = torch.randn(64, 96)
    assert error(Fp8Linear(layer, CPU)(quiet), layer(quiet)) < 0.05


def test_each_value_is_rounded_to_its_nearest():
    values = torch.randn(50, 300) * torch.logspace(-30, 30, 50)[:, None]
    rounded, scale = fp8.quantise(values)
    assert rounded.dtype == torch.float8_e4m3fn
    allowed = torch.maximum(values.abs() / 16, scale / 1024)  # half of the last of 3 bits, or of the smallest subnormal
    assert torch.all((rounded.float() * scale - values).abs() <= 1.01 * allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_rounded_weights(dtype):
    layer = Fp8Linear(linear(), CPU)
    x = torch.randn(7, 96).to(dtype).requires_grad_()
    grad = torch.randn(7, 80).to(dtype)
    layer(x).backward(grad)
    assert x.grad.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    torch.testing.assert_close(x.grad.float(), grad.float() @ dequantised(layer), **tolerance)
    assert not list(layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_layer_has_the_same_gradient(dtype):
    layer, results = Fp8Linear(linear(bias=True).to(dtype), CPU), []
    for call in (layer, torch.compile(layer, backend="aot_eager")):
        torch.manual_seed(1)
        x = torch.randn(7, 96).to(dtype).requires_grad_()
        out = call(x)
        out.square().sum().backward()
        results.append((out, x.grad))
    torch.testing.assert_close(results[1], results[0])


def test_rows_of_zeros_are_zeros():
    layer = linear()
    layer.weight[3] = 0
    x = torch.randn(4, 96)
    x[1] = 0
    x[2] = 1e-42
    x.requires_grad_()
    out = Fp8Linear(layer, CPU)(x)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert not out[1].any()
    assert not out[:, 3].any()
    assert Fp8Linear(layer, CPU)(torch.zeros(0, 96)).shape == (0, 80)


def test_what_is_not_finite_is_not_hidden():
    x = torch.randn(3, 96)
    x[0, 0], x[1, 0] = torch.inf, torch.nan
    assert torch.isfinite(Fp8Linear(linear(), CPU)(x)).all(1).tolist() == [False, False, True]


def test_casts_of_a_whole_model_leave_the_weights():
    layer = Fp8Linear(linear(), CPU)
    before = dequantised(layer)
    assert torch.equal(layer.scale, layer.scale.bfloat16().float())
    for cast in (layer.bfloat16(), layer.to(torch.bfloat16), layer.float()):
        assert torch.equal(dequantised(cast), before)
    assert not layer.state_dict()


def test_the_gpu_kernel_takes_these_operands(monkeypatch):
    """By the shapes and strides that its description in torch checks; no GPU is needed for that."""
    monkeypatch.setattr(fp8, "_one_kernel", lambda: fp8.quantise)
    called = []
    kernel = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *rest, **kwargs: called.append(rest) or kernel(*rest, **kwargs))
    with FakeTensorMode(), torch.device("cuda"):
        for width, out, dtype, by_kernel in (
            (96, 80, torch.bfloat16, True),
            (96, 80, torch.float32, False),
            (96, 72, torch.bfloat16, False),
        ):
            called.clear()
            layer = Fp8Linear(nn.Linear(width, out, dtype=dtype).requires_grad_(False), torch.device("cuda"))
            for tokens in (1, 3, 33):
                found = layer(torch.empty(1, tokens, width, dtype=dtype))
                assert (found.shape, found.dtype) == ((1, tokens, out), dtype)
            assert len(called) == 3 * by_kernel


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < fp8.CAPABILITY, reason="needs a GPU with 8-bit floats"
)
def test_a_gpu_computes_what_the_cpu_does():
    results = []
    for device in (CPU, torch.device("cuda")):
        layer = Fp8Linear(linear(512, 256, bias=True).bfloat16(), device).to(device)
        torch.manual_seed(1)
        x = torch.randn(77, 512).bfloat16().to(device).requires_grad_()
        out = layer(x)
        out.backward(torch.ones_like(out))
        results.append([out.detach().float().cpu(), x.grad.float().cpu()])
    for mine, reference in zip(results[1], results[0], strict=True):
        assert error(mine, reference) < 1e-2


def test_only_frozen_plain_layers_that_route_nothing_are_replaced():
    linears = {"gate": nn.Linear(16, 8), "gate_proj": nn.Linear(16, 32), "trains": nn.Linear(16, 16)}
    decoder = nn.ModuleDict({**linears, "table": nn.Embedding(5, 16)}).requires_grad_(False)
    decoder["trains"].requires_grad_(True)
    llm = nn.Module()
    llm.get_decoder = lambda: decoder
    fp8.convert(llm, CPU)
    assert [name for name, module in decoder.named_modules() if isinstance(module, Fp8Linear)] == ["gate_proj"]
    assert fp8.size(decoder) == 16 * 32
    with pytest.raises(UserError, match="no plain linear layers"):
        fp8.convert(llm, CPU)


@pytest.fixture
def folder(tmp_path, make_model):
    """A tiny Llama on disk."""
    make_model("llama").llm.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def heard(packed):
    """The packed batch, with audio frames that the demo encoder (a quarter as many) has too."""
    return replace(packed, audio_frame=packed.audio_frame // 5)


def build(llm, dtype=torch.float32, **settings):
    config = ModelConfig(llm=llm, encoder=EncoderConfig("demo"), adapter=AdapterConfig(stack=2, hidden=16), **settings)
    torch.manual_seed(0)
    return build_speech_llm(config, LossConfig(ce=1.0, kl=1.0), dtype, CPU, tasks=3).train()


def cosine(model, other, batch):
    """Between the gradients of what trains in both."""
    flat = []
    for one in (model, other):
        one(batch).loss.backward()
        flat.append(torch.cat([p.grad.float().flatten() for p in one.trainable_parameters().values()]))
    return float(torch.cosine_similarity(*flat, dim=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_a_model_trains_through_rounded_weights(folder, heard, dtype, checkpointing):
    plain = build(folder, dtype)
    model = build(folder, dtype, llm_fp8=True, activation_checkpointing=checkpointing)
    layers = [name for name, module in model.llm.named_modules() if isinstance(module, Fp8Linear)]
    assert len(layers) == 2 * 7
    assert all(".layers." in name for name in layers)
    left = sum(p.numel() for p in model.llm.parameters())
    assert left + fp8.size(model.llm) == sum(p.numel() for p in plain.llm.parameters())
    plain, model = (one.bfloat16() if dtype == torch.bfloat16 else one for one in (plain, model))
    assert cosine(plain, model, heard) > 0.98
    assert all(name.startswith("adapter.") for name in model.trainable_parameters())
    assert all(parameter.grad is None for parameter in model.llm.parameters())
    before = [layer.bits.clone() for layer in model.modules() if isinstance(layer, Fp8Linear)]
    losses = train_on(model, heard, steps=5, rate=1e-2)
    assert losses[-1] < losses[0]
    after = [layer.bits for layer in model.modules() if isinstance(layer, Fp8Linear)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_shipped_llm_hears_through_rounded_weights(heard):
    heard = replace(heard, token_ids=heard.token_ids % 40, target_ids=heard.target_ids % 40, teacher_ids=heard.teacher_ids % 40)
    assert cosine(build("demo"), build("demo", llm_fp8=True), heard) > 0.98


def test_low_rank_updates_stay_and_train(folder, heard):
    lora = LoraConfig(rank=2, targets=["q_proj", "down_proj"])
    plain, model = (build(folder, llm_fp8=on, llm_lora=lora) for on in (False, True))
    wrapped = model.llm.get_decoder().layers[0].mlp.down_proj
    assert isinstance(wrapped.base_layer, Fp8Linear)
    assert isinstance(wrapped.lora_A["default"], nn.Linear)
    assert list(model.trainable_parameters()) == list(plain.trainable_parameters())
    assert cosine(plain, model, heard) > 0.98
    grads = {name: p.grad for name, p in model.trainable_parameters().items() if "lora_B" in name}
    assert len(grads) == 4
    assert all(grad.norm() > 0 for grad in grads.values())


def test_a_run_and_its_export_open_with_the_llm_as_it_is(tmp_path):
    recipe = recipes.load("demo", ["model.llm_fp8=true", f"run_dir={tmp_path}"])
    recipes.save(recipe, tmp_path / "recipe.yaml")
    trained = build_speech_llm(recipe.model, recipe.loss, torch.float32, CPU)
    (tmp_path / "step").mkdir()
    save_file(trained.trainable_parameters(), tmp_path / "step" / "trainable.safetensors")
    run = open_run(tmp_path, str(tmp_path / "step"), "cpu")
    export(run, tmp_path / "out", "trained")
    opened = MtbiForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert [fp8.size(model.llm) > 0 for model in (trained, run.model, opened)] == [True, False, False]


def test_mistakes_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UserError, match=r"compute capability 8\.9 or higher, such as H100\); this one has 8\.0"):
        build_speech_llm(ModelConfig(llm="nowhere", llm_fp8=True), LossConfig(), torch.bfloat16, torch.device("cuda"))
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        fp8.check(torch.device("cuda"))
    recipe = recipes.load("demo", ["model.llm_fp8=true"])
    for stage in (1, 2, 3):
        path = tmp_path / f"{stage}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        if stage < 3:
            read_ds_config(path, recipe, 1, torch.float32)
    with pytest.raises(UserError, match=r"3\.json: model\.llm_fp8 keeps each process's LLM whole: use ds_configs/zero1\.json"):
        read_ds_config(path, recipe, 1, torch.float32)


def test_layers_that_train_keep_their_precision_and_the_frozen_ones_are_rounded():
    config = ModelConfig(llm_fp8=True, llm_trainable="last 1")
    llm = load_llm(config, torch.float32, CPU)
    *frozen, trained = decoder_layers(llm)
    assert not any(isinstance(module, Fp8Linear) for module in trained.modules())
    assert all(any(isinstance(module, Fp8Linear) for module in layer.modules()) for layer in frozen)
    llm(torch.arange(5)[None]).logits.sum().backward()
    assert all(parameter.grad.any() for parameter in trained.parameters())
    sizes = memory.sizes_of(replace(recipes.load("demo"), model=config))
    assert 0 < fp8.size(llm) <= sizes.llm_layers - sizes.llm_trained
