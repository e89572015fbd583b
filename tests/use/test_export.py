"""Exported folders in transformers: the same tokens as the run itself, from every kind of weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    BatchFeature,
    LlamaConfig,
    LlamaForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
    pipeline,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mtbi import recipe as recipes
from mtbi.audio import codec
from mtbi.cli import main
from mtbi.errors import UserError
from mtbi.hf import MtbiProcessor
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.generate import answer_logits
from mtbi.model.speech_llm import build_speech_llm
from mtbi.use.conversation import Conversation
from mtbi.use.export import export, make_processor
from mtbi.use.open_run import TrainedRun, open_run

PROMPT = "say the digits backwards"
WHISPER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_layers": 1,
           "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "num_mel_bins": 80, "max_source_positions": 400}  # fmt: skip
WAV2VEC2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (160, 2), "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}  # fmt: skip
KINDS = {
    "demo": ["model.encoder.layer=3"],
    "whisper": ["model.llm_lora.rank=4", "model.encoder_lora.rank=2"],
    "layers": ["model.encoder.layers=[0,-1]", "model.adapter.kind=clip-qformer", "model.adapter.queries=3"],
    "conformer": ["model.adapter.kind=conformer", "model.adapter.hidden=32", "model.adapter.heads=2"],
    "ultravox": [
        "model.adapter.kind=swiglu",
        "model.adapter.hidden=96",
        "model.llm_lora.rank=4",
        "model.llm_trainable=last 2",
        "train.llm_learning_rate=1e-5",
    ],
    "llm-layers": ["model.llm_trainable=0,2-3", "train.llm_learning_rate=1e-5"],
    "wav2vec2": [
        "model.encoder.trainable=true",
        "model.adapter.kind=qformer",
        "model.adapter.queries=2",
        "model.adapter.heads=2",
    ],
    "silence": [
        "model.encoder.layer=3",
        "model.adapter.kind=transformer",
        "model.adapter.drop_silence=1e-6",
        "loss.alignment=1",
    ],
}


Make = Callable[[str], TrainedRun]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(kind)` opens a run whose trained weights are random."""
    folder = tmp_path_factory.mktemp("runs")

    def open_new(kind: str) -> TrainedRun:
        torch.manual_seed(0)
        place, step = folder / f"{kind}-encoder", folder / kind / "step-00000001"
        overrides = [f"run_dir={folder / kind}", "plan.max_audio_seconds=5", *KINDS[kind]]
        if kind not in ("demo", "silence"):
            encoder = (
                WhisperModel(WhisperConfig(**WHISPER)) if kind != "wav2vec2" else Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2))
            )
            encoder.save_pretrained(place)
            overrides.append(f"model.encoder.path={place}")
        recipe = recipes.load("demo", overrides)
        recipes.save(recipe, folder / kind / "recipe.yaml")
        model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))
        trained = {name: value + 0.1 * torch.randn_like(value) for name, value in model.trainable_parameters().items()}
        step.mkdir(exist_ok=True)
        save_file(trained, step / "trainable.safetensors")
        return open_run(folder / kind, str(step), "cpu")

    return open_new


@pytest.fixture(scope="module")
def waves(speech: Path) -> list[np.ndarray]:
    """Two recordings of different lengths."""
    lines = (speech / "fsdd" / "manifest.jsonl").read_text().splitlines()
    digits = [codec.read(speech / "fsdd" / json.loads(line)["audio"]) for line in lines[:5]]
    return [np.concatenate(digits[:2]), np.concatenate(digits[2:])]


def conversation(*heard: np.ndarray, prompt: str = PROMPT) -> list[dict]:
    parts = [{"type": "audio", "audio": wave} for wave in heard]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


def prepared(processor: MtbiProcessor, talk: list) -> BatchFeature:
    return processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)


@pytest.mark.parametrize("layout", ["trained", "merged"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_export_gives_the_runs_own_tokens(
    make: Make, waves: list[np.ndarray], tmp_path: Path, kind: str, layout: str
) -> None:
    run = make(kind)
    expected = [Conversation(run, 12).say([wave], PROMPT) for wave in waves]
    chat = run.chat
    prompt = [torch.tensor(chat.prefix_ids), waves[0], torch.tensor(chat.suffix_ids(PROMPT))]
    [logits] = answer_logits(run.model, [prompt], [[7, 8, 9]])
    if kind == "silence":
        frames = run.model.encode_waveform(waves[0])
        assert 0 < len(run.model.heard(frames)) < len(frames)
    export(run, tmp_path / "out", layout)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = prepared(processor, [conversation(wave) for wave in waves])
    answers = model.generate(**inputs, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :]
    assert [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)] == expected

    one = prepared(processor, conversation(waves[0]))
    ids = torch.cat([one["input_ids"], torch.tensor([[7, 8, 9]])], 1)
    with torch.no_grad():
        found = model(**{**one, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    torch.testing.assert_close(found.logits[0, -4:-1], logits, rtol=1e-4, atol=1e-4)
    low_rank = any("lora_" in name for name, _ in model.named_parameters())
    assert low_rank == (kind in ("whisper", "ultravox") and layout == "trained")


def test_trained_weights_alone_are_small_and_name_the_frozen_ones(make: Make, tmp_path: Path) -> None:
    run = make("whisper")
    export(run, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert set(saved) == set(run.model.trainable_parameters())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["parts"]["llm"] == "demo"
    assert not config["complete"]


def test_the_chat_template_lays_a_dialogue_out_as_training_does(make: Make, waves: list[np.ndarray], tmp_path: Path) -> None:
    run = make("demo")
    processor = make_processor(run)
    chat, (first, second) = run.chat, waves
    counts = [FrameGeometry(**processor.geometry).frames(len(wave)) for wave in waves]
    heard = [[processor.audio_token_id] * count for count in counts]
    assert prepared(processor, conversation(first))["input_ids"].tolist() == [
        [*chat.prefix_ids, *heard[0], *chat.suffix_ids(PROMPT)]
    ]
    mixed = [{"type": "text", "text": "one two"}, {"type": "audio", "audio": first}, {"type": "text", "text": "three"},
             {"type": "audio", "audio": second}, {"type": "text", "text": PROMPT}]  # fmt: skip
    words = [chat.transcript_ids("one two"), chat.word_ids(["x", "three"])[1]]
    assert prepared(processor, [{"role": "user", "content": mixed}])["input_ids"].tolist() == [
        [*chat.prefix_ids, *words[0], *heard[0], *words[1], *heard[1], *chat.suffix_ids(PROMPT)]
    ]
    talk = [*conversation(first), {"role": "assistant", "content": "one two"}, {"role": "user", "content": "count the digits"}]
    assert prepared(processor, talk)["input_ids"].tolist() == [
        [*chat.prefix_ids, *heard[0], *chat.suffix_ids(PROMPT), *chat.text_ids("one two"), chat.end_id,
         *chat.turn_ids("count the digits")]
    ]  # fmt: skip


def test_the_template_keeps_the_system_prompt_of_the_recipe(make: Make) -> None:
    run = make("demo")
    run.recipe.behaviour.system_prompt = 'you "listen"'
    text = make_processor(run).apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    assert text == f'<s><|system|>you "listen"<|end|><|user|>{PROMPT}<|end|><|assistant|>'


def test_a_pipeline_answers_files_and_conversations(make: Make, waves: list[np.ndarray], tmp_path: Path) -> None:
    run = make("demo")
    expected = Conversation(run, 12).say([waves[0]], PROMPT)
    export(run, tmp_path / "out", "merged")
    ask = pipeline("audio-text-to-text", model=str(tmp_path / "out"))
    file = tmp_path / "one.flac"
    file.write_bytes(codec.encode(waves[0]))
    assert ask({"audio": waves[0], "text": PROMPT}, max_new_tokens=12) == {"generated_text": expected}
    assert ask(conversation(waves[0]), max_new_tokens=12) == {"generated_text": expected}
    assert ask({"audio": str(file), "text": PROMPT}, max_new_tokens=12)["generated_text"]


def test_sampling_and_beams_work_and_what_cannot_is_refused(make: Make, waves: list[np.ndarray], tmp_path: Path) -> None:
    export(make("demo"), tmp_path / "out", "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    one, two = prepared(processor, conversation(waves[0])), prepared(processor, conversation(*waves))
    assert len(model.generate(**one, num_beams=3, num_return_sequences=3, max_new_tokens=5)) == 3
    assert len(model.generate(**two, max_new_tokens=5)) == 1
    with pytest.raises(ValueError, match="exactly one recording"):
        model.generate(**two, num_beams=2, max_new_tokens=5)
    with pytest.raises(ValueError, match="use the processor"):
        model(input_ids=one["input_ids"][:, 10:], input_values=one["input_values"], input_lengths=one["input_lengths"])
    with pytest.raises(ValueError, match="8000 Hz"):
        processor(text="<|audio|>", audio=waves[0], sampling_rate=8000)
    with pytest.raises(ValueError, match="at most 5 s"):
        processor(text="<|audio|>", audio=np.zeros(6 * 16000, np.float32))
    with pytest.raises(ValueError, match="1 <|audio|> in the text and 2 recordings".replace("|", r"\|")):
        processor(text="<|audio|>", audio=waves)


def test_ultravoxs_layout_gives_the_runs_logits(make: Make, waves: list[np.ndarray], tmp_path: Path) -> None:
    """The layout read by its published description, with transformers' own Whisper and Llama."""
    run = make("ultravox")
    chat, answer = run.chat, [7, 8, 9]
    prompt = [torch.tensor(chat.prefix_ids), waves[0], torch.tensor(chat.suffix_ids(PROMPT))]
    [logits] = answer_logits(run.model, [prompt], [answer])
    export(run, tmp_path / "out", "ultravox")

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    text = processor.apply_chat_template(conversation(waves[0]), add_generation_prompt=True)
    inputs = processor(text=text, audios=[waves[0]], sampling_rate=16_000)
    whole = (waves[0] * 2**15).astype(np.int16)
    for wrong in (whole, whole.astype(np.float32), waves[0][:0], np.full(9, np.nan), np.stack([waves[0]] * 2)):
        with pytest.raises(ValueError, match="a recording"):
            processor(text=text, audios=[wrong])

    def part(name: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}

    whisper = WhisperEncoder(WhisperConfig(**config["audio_config"])).eval()
    whisper.load_state_dict(part("audio_tower"))
    llm = LlamaForCausalLM(LlamaConfig(**config["text_config"])).eval()
    missing = llm.load_state_dict(part("language_model"), strict=False).missing_keys
    assert missing == ["lm_head.weight"]  # tied to the embeddings
    llm.tie_weights()
    projector = part("multi_modal_projector")
    with torch.no_grad():
        hidden = functional.gelu(whisper.conv2(functional.gelu(whisper.conv1(inputs["audio_values"])))).transpose(1, 2)
        hidden = hidden + whisper.embed_positions.weight[: hidden.shape[1]]
        for layer in whisper.layers:
            hidden = layer(hidden, attention_mask=None, layer_head_mask=None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # transformers 4 returns a tuple
        hidden = whisper.layer_norm(hidden)
        stacked = functional.pad(hidden, (0, 0, 0, -hidden.shape[1] % config["stack_factor"]))
        stacked = stacked.reshape(1, -1, hidden.shape[2] * config["stack_factor"])
        normal = functional.rms_norm(stacked, stacked.shape[-1:], projector["ln_pre.weight"], 1e-6)
        value, gate = (normal @ projector["linear_1.weight"].T).chunk(2, dim=-1)
        middle = value * functional.silu(gate)
        frames = (
            functional.rms_norm(middle, middle.shape[-1:], projector["ln_mid.weight"], 1e-6) @ projector["linear_2.weight"].T
        )
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
        heard = ids == config["audio_token_index"]
        assert int(heard.sum()) == frames.shape[1] == int(inputs["audio_token_len"].sum())
        embedded = llm.get_input_embeddings()(ids.masked_fill(heard, 0)).masked_scatter(heard[..., None], frames)
        found = llm(inputs_embeds=embedded).logits[0, -4:-1]
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_ultravoxs_layout_wants_whisper_and_its_projector(make: Make, tmp_path: Path) -> None:
    refused = {
        "demo": "Whisper encoders",
        "whisper": "model.adapter.kind=swiglu",
        "layers": "this run has model.encoder.layers",
    }
    for kind, message in refused.items():
        with pytest.raises(UserError, match=message):
            export(make(kind), tmp_path / kind, "ultravox")
        assert not (tmp_path / kind).exists()


def test_one_command_writes_the_folder_with_its_card(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("demo")
    measured = run.folder / "evaluation" / run.checkpoint.name
    measured.mkdir(parents=True)
    (measured / "table.md").write_text("| accuracy |\n|---|\n| 12.3 |\n")
    command = ["export", str(run.folder), str(tmp_path / "out"), "--checkpoint", str(run.checkpoint)]
    assert main(command) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {
        "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja",
        "generation_config.json", "recipe.yaml", "README.md",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 12.3 |" in card
    everything = "".join(path.read_text(errors="ignore") for path in (tmp_path / "out").iterdir())
    assert str(run.folder.parent) not in everything  # places on the machine that trained
    capsys.readouterr()
    assert main(command) == 2
    assert "not empty" in capsys.readouterr().err


def test_trained_layers_of_the_llm_are_in_the_export_and_on_its_card(make: Make, tmp_path: Path) -> None:
    run = make("llm-layers")
    export(run, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {name.split(".")[3] for name in saved if name.startswith("llm.")} == {"0", "2", "3"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Layers of the text LLM were trained too, with their own weights: 0,2-3.\nThe weights here" in card


def test_new_tokens_are_refused(untrained_run, tmp_path):
    model = replace(untrained_run.recipe.model, new_tokens=["<a>"])
    with pytest.raises(UserError, match="new tokens cannot be exported"):
        export(replace(untrained_run, recipe=replace(untrained_run.recipe, model=model)), tmp_path / "out")
    assert not list(tmp_path.iterdir())
