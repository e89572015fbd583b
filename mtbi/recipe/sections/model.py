"""The section `model`: the encoder, the adapter and the LLM."""

# ruff: noqa: RUF009  # `setting` copies lists and mappings
from __future__ import annotations

from dataclasses import dataclass, field, replace

from mtbi import plugins
from mtbi.recipe.fields import setting


@dataclass
class EncoderConfig:
    """The speech encoder."""

    path: str = setting(
        "demo", "a Whisper, WavLM, HuBERT or wav2vec2 model (Hugging Face name or folder), `demo`, or `plugin:NAME`"
    )
    layer: int = setting(-1, "which hidden layer feeds the adapter: 0 = input of the first layer, -1 = the last", minimum=None)
    layers: list[int] | str = setting(
        [],
        "several hidden layers up to `layer`, by number, or `all`: the adapter gets their sum with trained weights",
        minimum=None,
        choices=("all",),
    )
    trainable: bool = setting(False, "train the encoder's own weights")
    beside: dict[str, EncoderConfig] = setting(
        {}, "further encoders by name; their features stand beside this one's, frame by frame"
    )


@dataclass
class AdapterConfig:
    """The trainable bridge from encoder frames to LLM embeddings."""

    kind: str = setting(
        "mlp",
        "`mlp`, `swiglu` (Ultravox, vLLM), `conv` (strided), `qformer` (queries a window), `clip-qformer` (queries the clip), "
        "`transformer`, `conformer` or an installed one",
        choices=("mlp", "swiglu", "conv", "qformer", "clip-qformer", "transformer", "conformer"),
        entry_points=plugins.ADAPTERS,
    )
    stack: int = setting(
        4, "encoder frames that become one LLM position (`qformer`: frames a window; `clip-qformer`: not used)", minimum=1
    )
    hidden: int = setting(0, "width of the middle layer; 0 = the LLM's hidden size")
    queries: int = setting(
        1,
        "LLM positions for each window, with `clip-qformer` for each clip; `qformer`, `clip-qformer` and installed kinds only",
        minimum=1,
    )
    layers: int = setting(2, "transformer layers; all but `mlp`, `swiglu` and `conv`", minimum=1)
    heads: int = setting(4, "attention heads; all but `mlp`, `swiglu` and `conv`", minimum=1)
    drop_silence: float = setting(
        0.0,
        "the LLM does not read adapter frames whose probability of silence is at least this, such as 0.9; needs the alignment "
        "loss; 0 = it reads all",
        maximum=1.0,
    )


@dataclass
class LoraConfig:
    """Low-rank adaptation through peft; off while rank is 0."""

    rank: int = setting(0, "rank of the update; 0 = no LoRA")
    alpha: float = setting(16.0, "the update is multiplied by alpha / rank")
    dropout: float = setting(0.0, "dropout probability on the update's input")
    targets: list[str] = setting(["q_proj", "v_proj"], "names of the linear layers that get an update")


@dataclass
class ModelConfig:
    """Encoder + adapter + LLM: the adapter trains, the others as far as asked for."""

    llm: str = setting("demo", "Hugging Face name or folder of a causal LLM with a chat template; `demo` is the shipped one")
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    llm_trainable: str = setting(
        "none",
        "LLM layers whose own weights train: `none`, `all`, `last 4`, or numbers such as 0-3,30; embeddings and output layer "
        "stay frozen",
    )
    llm_lora: LoraConfig = field(default_factory=LoraConfig)
    encoder_lora: LoraConfig = field(default_factory=LoraConfig)
    llm_fp8: bool = setting(
        False, "keep the frozen LLM's linear layers as 8-bit floats in training: half the memory, for H100 and newer"
    )
    attention: str = setting(
        "auto",
        "`dense`, `flash`, `flex`, or `auto` (what suits the LLM: flash or flex on a GPU, else dense)",
        choices=("auto", "dense", "flash", "flex"),
    )
    activation_checkpointing: str = setting(
        "auto",
        "recompute the LLM's activations in the backward pass: `on`, `off`, `auto` (where GPU memory needs it)",
        choices=("auto", "on", "off"),
    )
    compile: bool = setting(False, "compile the LLM's layers (torch.compile); no faster on CPUs; not with ZeRO-3")
    trust_remote_code: bool = setting(
        False, "run Python code that comes with the LLM or encoder; leave off unless you have read it"
    )
    new_tokens: list[str] = setting([], "tokens to add to the LLM with trainable rows, such as <speaker1>")
    hidden_tokens: list[str] = setting([], "new tokens that the text of an answer does not show")


def in_use(model: ModelConfig) -> ModelConfig:
    """The model without what only training needs: 8-bit weights, compiled layers, attention kernels for packed rows."""
    return replace(model, llm_fp8=False, compile=False, attention="dense")
