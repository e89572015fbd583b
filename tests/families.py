"""Tiny random LLMs of many families of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    DeepseekV2Config,
    DeepseekV3Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MiniMaxConfig,
    MistralConfig,
    Olmo3Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from mtbi.llm import attention, back_end
from mtbi.llm.last_layer import LastLayer

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW: dict[str, Any] = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT: dict[str, Any] = SIZES | {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "head_dim": 8,
}  # fmt: skip
EYES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def composite_gemma3() -> Gemma3Config:
    """Gemma 3 of 4B and more: a text LLM beside a vision encoder."""
    text = Gemma3TextConfig(**SIZES, **WINDOW).to_dict()
    return Gemma3Config(text_config=text, vision_config=EYES, mm_tokens_per_image=4)


#: Those that packed rows are right for.
RIGHT = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, **EXPERTS),
    "olmo3": lambda: Olmo3Config(**SIZES, **WINDOW),
    "cohere2": lambda: Cohere2Config(**SIZES, **WINDOW),
    "exaone4": lambda: Exaone4Config(**SIZES, **WINDOW),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, **WINDOW),
    "gemma3 with vision": composite_gemma3,
    "phi3": lambda: Phi3Config(**SIZES, sliding_window=4),
    "granite": lambda: GraniteConfig(**SIZES, attention_multiplier=0.3, residual_multiplier=0.5),
    "llama4": lambda: Llama4TextConfig(**SIZES, attention_chunk_size=64),
    "gpt_oss": lambda: GptOssConfig(**SIZES, sliding_window=4, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v2": lambda: DeepseekV2Config(**LATENT, topk_method="greedy"),
    "deepseek_v3": lambda: DeepseekV3Config(**LATENT),
    "opt": lambda: OPTConfig(
        vocab_size=61, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
}
#: Those that are refused, and a part of the sentence.
REFUSED = {
    "gemma2": (lambda: Gemma2Config(**SIZES), "gemma2 caps attention scores"),
    "lfm2": (lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), r"no attention \(conv\)"),
    "minimax": (lambda: MiniMaxConfig(**SIZES), r"no attention \(linear_attention\)"),
    "qwen3_next": (lambda: Qwen3NextConfig(**SIZES), r"no attention \(linear_attention\)"),
    "jamba": (
        lambda: JambaConfig(**SIZES, num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False),
        r"no attention \(mamba\)",
    ),
    "mamba": (lambda: MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2), r"convolutions over tokens \(Conv1d\)"),
    "gpt2": (lambda: GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4), "its decoder has no `layers`"),
    "gpt_neox": (lambda: GPTNeoXConfig(**SIZES), "its decoder has no `layers`"),
    "llama4 in short chunks": (lambda: Llama4TextConfig(**SIZES, attention_chunk_size=6), r"attention chunk \(6 tokens\)"),
}


def build(config: Any, name: str) -> Any:
    """The LLM, as `SpeechLLMModule` has it, of weights so large that all parts of it matter. Raises UserError as it does."""
    attention.register()
    torch.manual_seed(0)
    config.get_text_config().initializer_range = 0.2
    llm = AutoModelForCausalLM.from_config(config, attn_implementation=name).requires_grad_(False).eval()
    for path, parameter in llm.named_parameters():
        if path.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    back_end.check_model(llm)
    LastLayer(llm)
    return llm
