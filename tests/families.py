"""Tiny random LLMs of many families of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

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
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
GROUPED: dict[str, Any] = EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
HYBRID: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "shared_intermediate_size": 48, "num_local_experts": 0,
}  # fmt: skip
LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
SPARSE: dict[str, Any] = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 4}
OPT_SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
}  # fmt: skip
FOUR_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 4, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip


def config_of(kind: str, **fields: Any) -> Any:
    """The configuration of a `model_type` of transformers."""
    return CONFIG_MAPPING[kind](**fields)


def with_vision(kind: str, **fields: Any) -> Any:
    """The configuration of a text LLM beside a vision encoder, such as Gemma 3 of 4B and more."""
    return config_of(kind, text_config=config_of(f"{kind}_text", **fields).to_dict(), vision_config=EYES, mm_tokens_per_image=4)


#: LLMs that packed rows are right for: the `model_type`, and the fields of its configuration.
SUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama4": ("llama4_text", SIZES | {"attention_chunk_size": 64}),
    "smollm3": ("smollm3", SIZES),
    "mistral": ("mistral", SIZES | {"sliding_window": 4}),
    "mixtral": ("mixtral", SIZES | LOCAL),
    "ministral": ("ministral", SIZES | WINDOW),
    "ministral3": ("ministral3", SIZES),
    "qwen2": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe", SIZES | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3": ("qwen3", SIZES),
    "qwen3_moe": ("qwen3_moe", SIZES | EXPERTS),
    "gemma": ("gemma", SIZES),
    "gemma3": ("gemma3_text", SIZES | WINDOW),
    "gemma3 with vision": ("gemma3", SIZES | WINDOW),
    "gemma4": ("gemma4_text", SIZES | FOUR_LAYERS | {
        "global_head_dim": 16, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}),
    "phi": ("phi", SIZES),
    "phi3": ("phi3", SIZES | {"sliding_window": 4}),
    "phimoe": ("phimoe", SIZES | LOCAL),
    "granite": ("granite", SIZES | {"attention_multiplier": 0.3, "residual_multiplier": 0.5}),
    "granitemoe": ("granitemoe", SIZES | LOCAL),
    "granitemoeshared": ("granitemoeshared", SIZES | LOCAL | {"shared_intermediate_size": 16}),
    "granitemoehybrid of attention": ("granitemoehybrid", SIZES | HYBRID | {"layer_types": ["attention"] * 2}),
    "olmo": ("olmo", SIZES),
    "olmo2": ("olmo2", SIZES),
    "olmo3": ("olmo3", SIZES | WINDOW),
    "olmoe": ("olmoe", SIZES | EXPERTS),
    "glm": ("glm", SIZES),
    "glm4": ("glm4", SIZES),
    "glm4_moe": ("glm4_moe", SIZES | GROUPED),
    "glm4_moe_lite": ("glm4_moe_lite", LATENT),
    "deepseek_v2": ("deepseek_v2", LATENT | {"topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "gpt_oss": ("gpt_oss", SIZES | LOCAL | {"sliding_window": 4}),
    "cohere2": ("cohere2", SIZES | WINDOW),
    "exaone4": ("exaone4", SIZES | WINDOW),
    "ernie4_5": ("ernie4_5", SIZES),
    "seed_oss": ("seed_oss", SIZES),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", SIZES),
    "apertus": ("apertus", SIZES),
    "afmoe": ("afmoe", SIZES | EXPERTS),
    "minimax_m2": ("minimax_m2", SIZES | LOCAL),
    "mimo_v2_flash": ("mimo_v2_flash", SIZES | WINDOW | EXPERTS),
    "gpt_neox": ("gpt_neox", SIZES),
    "opt": ("opt", OPT_SIZES),
}  # fmt: skip
#: LLMs that are refused, and a part of the sentence.
UNSUPPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma2": ("gemma2", SIZES, "gemma2 caps attention scores"),
    "gemma3n": ("gemma3n_text", SIZES | WINDOW | {
        "vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4,
        "altup_num_inputs": 2, "intermediate_size": [48, 48], "activation_sparsity_pattern": [0.0, 0.0]},
        "gemma3n_text looks up an embedding of each token in every layer"),
    "gemma4 of few parameters": ("gemma4_text", SIZES | WINDOW | {
        "global_head_dim": 8, "vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
        "gemma4_text looks up an embedding of each token in every layer"),
    "lfm2": ("lfm2", SIZES | {"layer_types": ["conv", "full_attention"]}, r"no attention \(conv\)"),
    "minimax": ("minimax", SIZES, r"no attention \(linear_attention\)"),
    "qwen3_next": ("qwen3_next", SIZES, r"no attention \(linear_attention\)"),
    "qwen3_5": ("qwen3_5_text", SIZES | LINEAR, r"no attention \(linear_attention\)"),
    "qwen4": ("qwen4_exp_text", SIZES, r"no attention \(linear_attention\)"),
    "olmo_hybrid": ("olmo_hybrid", SIZES | LINEAR, r"no attention \(linear_attention\)"),
    "granitemoehybrid": ("granitemoehybrid", SIZES | HYBRID | {"layer_types": ["mamba", "attention"]},
        r"no attention \((mamba|linear_attention)\)"),
    "jamba": ("jamba", SIZES | {
        "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        r"no attention \(.*mamba\)"),
    "mamba": ("mamba", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2},
        r"does not use transformers' attention interface|no attention \(linear_attention\)"),
    "glm_moe_dsa": ("glm_moe_dsa", LATENT | SPARSE, r"sparse attention \(indexed_attention\)"),
    "deepseek_v3.2": ("deepseek_v32", LATENT | SPARSE, r"sparse attention \(indexed_attention\)"),
    "deepseek_v4": ("deepseek_v4", LATENT, r"sparse attention \(heavily_compressed_attention\)"),
    "gpt2": ("gpt2", {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4}, "its decoder has no `layers`"),
    "falcon": ("falcon", {name: value for name, value in SIZES.items() if name != "head_dim"},
        "FalconForCausalLM does not use transformers' attention interface"),
    "llama4 in short chunks": ("llama4_text", SIZES | {"attention_chunk_size": 6}, r"attention chunk \(6 tokens\)"),
}  # fmt: skip
#: Those that transformers 4 knows, but computes in code of their own, and a part of the sentence.
NEWER = dict.fromkeys(
    ("qwen2_moe", "phimoe", "granitemoe", "granitemoeshared", "granitemoehybrid of attention", "olmoe"),
    "does not use transformers' attention interface",
) | {"gpt_neox": "its decoder has no `layers`"}
if transformers.__version__ < "5":
    UNSUPPORTED |= {name: (*SUPPORTED.pop(name), sentence) for name, sentence in NEWER.items()}

#: Functions that make the configurations of those that the installed transformers knows.
RIGHT = {
    name: partial(with_vision if name.endswith("with vision") else config_of, kind, **fields)
    for name, (kind, fields) in SUPPORTED.items()
    if kind in CONFIG_MAPPING
}
REFUSED = {
    name: (partial(config_of, kind, **fields), sentence)
    for name, (kind, fields, sentence) in UNSUPPORTED.items()
    if kind in CONFIG_MAPPING
}


def build(config: Any, name: str) -> Any:
    """The LLM, as `SpeechLLMModule` has it, of weights so large that all parts of it matter. Raises UserError as it does."""
    llm = plain(config, name)
    LastLayer(llm)
    return llm


def plain(config: Any, name: str) -> Any:
    """The LLM of `build`, before `SpeechLLMModule` changes its last layer."""
    attention.register()
    torch.manual_seed(0)
    config.get_text_config().initializer_range = 0.2
    llm = AutoModelForCausalLM.from_config(config, attn_implementation=name).requires_grad_(False).eval()
    for path, parameter in llm.named_parameters():
        if path.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    back_end.check_model(llm)
    return llm
