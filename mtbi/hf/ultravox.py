"""Export in the layout of Ultravox (github.com/fixie-ai/ultravox), which vLLM serves: Whisper, the `swiglu` adapter, an LLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor

from mtbi.errors import UserError
from mtbi.hf import ultravox_processing
from mtbi.model.adapter import GatedMlp
from mtbi.model.encoders.whisper import Whisper
from mtbi.model.speech_llm import SpeechLLMModule

PROCESSING = "ultravox_processing"


def parts(model: SpeechLLMModule) -> tuple[Whisper, GatedMlp, Any]:
    """Encoder, adapter and LLM. Raises UserError where the model has another encoder or adapter than Ultravox."""
    if model.adapter.mix:
        raise UserError("the Ultravox layout is for encoders that give one layer; this run has model.encoder.layers")
    encoder, adapter = model.encoder, model.adapter.kind
    if not isinstance(encoder, Whisper):
        raise UserError("the Ultravox layout is for Whisper encoders; this run has another one")
    if not isinstance(adapter, GatedMlp):
        raise UserError("the Ultravox layout is for runs with model.adapter.kind=swiglu; this run has another adapter")
    if model.filter:
        raise UserError("the Ultravox layout has a position for each adapter frame; this run has model.adapter.drop_silence")
    return encoder, adapter, model.llm


def write(model: SpeechLLMModule, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write configuration, weights (several files above 5 GB), tokenizer and processor. Low-rank updates must be merged."""
    (folder / "config.json").write_text(json.dumps(config(model, tokenizer), indent=1) + "\n")
    save_torch_state_dict(weights(model), folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # readable by all users
    WhisperFeatureExtractor(feature_size=parts(model)[0].features.filters.shape[1]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(ultravox_processing.__file__, folder / f"{PROCESSING}.py")
    processor = {"processor_class": "UltravoxProcessor", "auto_map": {"AutoProcessor": f"{PROCESSING}.UltravoxProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def config(model: SpeechLLMModule, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Ultravox's configuration."""
    encoder, adapter, llm = parts(model)
    return {
        "model_type": "ultravox",
        "architectures": ["UltravoxModel"],
        "audio_config": encoder.encoder.config.to_dict() | {"encoder_layers": len(encoder.encoder.layers)},
        "text_config": llm.config.to_dict(),
        "audio_token_index": tokenizer.convert_tokens_to_ids(ultravox_processing.AUDIO_TOKEN),
        "hidden_size": adapter.expand.out_features,
        "stack_factor": adapter.stack,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "num_projector_layers": 0,
        "vocab_size": llm.get_input_embeddings().num_embeddings,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def weights(model: SpeechLLMModule) -> dict[str, Tensor]:
    """The weights under Ultravox's names. The adapter's scale is multiplied into its last layer."""
    encoder, adapter, llm = parts(model)
    named = {
        "multi_modal_projector.ln_pre.weight": adapter.norm.weight,
        "multi_modal_projector.linear_1.weight": adapter.expand.weight,
        "multi_modal_projector.ln_mid.weight": adapter.middle_norm.weight,
        "multi_modal_projector.linear_2.weight": adapter.output.weight * adapter.output.scale,
    }
    towers = {"audio_tower": encoder.encoder, "language_model": llm}
    tied = {f"language_model.{name}" for name in llm._tied_weights_keys or []} if llm.config.tie_word_embeddings else set()
    named |= {f"{name}.{key}": value for name, tower in towers.items() for key, value in tower.state_dict().items()}
    return {name: value.detach().cpu().contiguous() for name, value in named.items() if name not in tied}
