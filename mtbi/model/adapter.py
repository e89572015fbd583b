"""Adapters: encoder frames to a shorter sequence of LLM embeddings. `stack` encoder frames become one LLM position.

The queries of `clip-qformer` read the whole clip, so that each clip takes the same number of LLM positions.

A fresh adapter's output has about the root mean square of the LLM's own embeddings, so training starts in the range that the
frozen LLM knows. Outputs beyond a clip's length are zero. They do not depend on other clips of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi import plugins
from mtbi.errors import UserError
from mtbi.model.encoders.protocol import Taps, frame_mask
from mtbi.model.frame_counts import CLIP_QFORMER, adapter_queries, adapter_stack
from mtbi.model.layer_mix import LayerMix, build_mix
from mtbi.model.masking import masked
from mtbi.recipe import AdapterConfig

GELU_RMS = 0.652  # root mean square of gelu(x) for a standard normal x


def windows(frames: Tensor, size: int) -> Tensor:
    """`(clips, frames, width)` to `(clips, ceil(frames / size), size, width)`, zero-padded."""
    frames = functional.pad(frames, (0, 0, 0, -frames.shape[1] % size))
    return frames.unflatten(1, (-1, size))


class Output(nn.Linear):
    """Last layer: to LLM embeddings whose root mean square is about `scale`, given inputs of about `input_rms`."""

    def __init__(self, width: int, llm_hidden: int, scale: float, input_rms: float, bias: bool = True) -> None:
        super().__init__(width, llm_hidden, bias)
        nn.init.normal_(self.weight, std=1 / (input_rms * math.sqrt(width)))
        if bias:
            nn.init.zeros_(self.bias)
        self.scale = scale  # outside the weight, so that one learning rate suits LLMs of any embedding size

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) * self.scale


class StackMlp(nn.Module):
    """`stack` frames side by side, layer norm, two layers (as in SLAM-ASR and Ultravox)."""

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        super().__init__()
        hidden = config.hidden or llm_hidden
        self.stack = config.stack
        self.norm = nn.LayerNorm(config.stack * width)
        self.expand = nn.Linear(config.stack * width, hidden)
        nn.init.normal_(self.expand.weight, std=1 / math.sqrt(config.stack * width))
        self.output = Output(hidden, llm_hidden, scale, GELU_RMS)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, ceil(frames / stack), llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        stacked = windows(frames * exists, self.stack).flatten(2)
        return self.output(functional.gelu(self.expand(self.norm(stacked))))


class GatedMlp(nn.Module):
    """`stack` frames side by side, RMS norm, SwiGLU, RMS norm, no biases: the projector of Ultravox 0.5, which vLLM runs."""

    EPS = 1e-6

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        super().__init__()
        half = -(-(config.hidden or llm_hidden) // 2)
        self.stack = config.stack
        self.norm = nn.RMSNorm(config.stack * width, eps=self.EPS)
        self.expand = nn.Linear(config.stack * width, 2 * half, bias=False)
        nn.init.normal_(self.expand.weight, std=1 / math.sqrt(config.stack * width))
        self.middle_norm = nn.RMSNorm(half, eps=self.EPS)
        self.output = Output(half, llm_hidden, scale, 1.0, bias=False)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, ceil(frames / stack), llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        value, gate = self.expand(self.norm(windows(frames * exists, self.stack).flatten(2))).chunk(2, dim=-1)
        return self.output(self.middle_norm(functional.silu(gate) * value))


class Convolution(nn.Module):
    """Layer norm, one convolution of stride `stack` that sees `stack` frames to either side, and an output layer."""

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        super().__init__()
        hidden, kernel = config.hidden or llm_hidden, 2 * config.stack + 1
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Conv1d(width, hidden, kernel, stride=config.stack, padding=config.stack)
        nn.init.normal_(self.reduce.weight, std=1 / math.sqrt(kernel * width))
        self.output = Output(hidden, llm_hidden, scale, GELU_RMS)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, ceil(frames / stack), llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        hidden = self.reduce((self.norm(frames) * exists).transpose(1, 2)).transpose(1, 2)
        return self.output(functional.gelu(hidden))


class WindowQformer(nn.Module):
    """`queries` learnt queries read each window of `stack` frames (window-level Q-Former, SALMONN, arXiv 2310.13289)."""

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        super().__init__()
        hidden = width_of_heads(config, llm_hidden)
        self.stack = config.stack
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, hidden)
        self.positions = nn.Parameter(torch.randn(config.stack, hidden) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.queries, hidden))
        layer = nn.TransformerDecoderLayer(hidden, config.heads, 4 * hidden, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(hidden))
        self.output = Output(hidden, llm_hidden, scale, 1.0)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, ceil(frames / stack) * queries, llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        exists = windows(exists, self.stack).flatten(0, 1)[..., 0]
        exists[:, 0] = True  # a window of nothing but padding reads one frame: a softmax over nothing would be NaN
        memory = windows(self.enter(self.norm(frames)), self.stack)
        clips, count = memory.shape[:2]
        memory = memory.flatten(0, 1) + self.positions
        queries = self.queries.expand(clips * count, -1, -1)
        hidden = self.layers(queries, memory, memory_key_padding_mask=~exists)
        return self.output(hidden).unflatten(0, (clips, count)).flatten(1, 2)


class TransformerAdapter(nn.Module):
    """`stack` frames side by side, then transformer layers in which each position reads its whole clip, and an output layer.

    A token of the LLM lasts longer than a window, so its frame needs the sound around it (as in the speech adapter of Llama 3,
    arXiv 2407.21783). A depthwise convolution before the layers tells them the order (Mohamed et al. 2019, arXiv 1904.11660).
    """

    KERNEL = 15  #: windows that the convolution sees

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        super().__init__()
        hidden = width_of_heads(config, llm_hidden)
        self.stack = config.stack
        self.norm = nn.LayerNorm(config.stack * width)
        self.enter = nn.Linear(config.stack * width, hidden)
        self.order = nn.Conv1d(hidden, hidden, self.KERNEL, padding=self.KERNEL // 2, groups=hidden)
        layer = nn.TransformerEncoderLayer(hidden, config.heads, 4 * hidden, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(hidden), enable_nested_tensor=False)
        self.output = Output(hidden, llm_hidden, scale, 1.0)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, ceil(frames / stack), llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        inside = windows(exists, self.stack)[:, :, 0]
        hidden = self.enter(self.norm(windows(frames * exists, self.stack).flatten(2))) * inside
        hidden = hidden + functional.gelu(self.order(hidden.transpose(1, 2)).transpose(1, 2))
        outside = ~inside[..., 0]
        outside[:, 0] = False  # a clip without frames reads one: a softmax over nothing would be NaN
        return self.output(self.layers(hidden, src_key_padding_mask=outside))


class ClipQformer(nn.Module):
    """`queries` learnt queries read the whole clip (the Q-Former of BLIP-2, arXiv 2301.12597), whatever its length.

    The frames get the sines of their positions (arXiv 1706.03762), so that the order of what was said can be read.
    """

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        super().__init__()
        hidden = width_of_heads(config, llm_hidden)
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, hidden)
        self.queries = nn.Parameter(torch.randn(config.queries, hidden))
        layer = nn.TransformerDecoderLayer(hidden, config.heads, 4 * hidden, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(hidden))
        self.output = Output(hidden, llm_hidden, scale, 1.0)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, queries, llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        memory = self.enter(self.norm(frames))
        memory = memory + sinusoids(memory.shape[1], memory.shape[2], memory.device).to(memory.dtype)
        queries = self.queries.expand(len(frames), -1, -1)
        return self.output(self.layers(queries, memory, memory_key_padding_mask=~exists[..., 0]))


def sinusoids(frames: int, width: int, device: torch.device) -> Tensor:
    """`(frames, width)` float32: sines, then cosines, of the frame numbers, with wavelengths from 2π to 20,000π frames."""
    half = -(-width // 2)
    rates = 1e4 ** (-torch.arange(half, device=device) / half)
    angles = torch.arange(frames, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :width]


class Conformer(nn.Module):
    """`stack` frames side by side, layer norm, then Conformer blocks (arXiv 2005.08100) over the shorter sequence.

    The blocks are those of w2v-BERT 2.0 in transformers. They mask convolution and attention, and normalise each frame by
    itself; the convolution sees earlier frames, the attention the whole clip. torchaudio's Conformer does not mask its
    convolution, and normalises over clips or over time with the padding, so that a clip's result depends on its neighbours.
    """

    KERNEL = 9  #: adapter frames that the convolution sees

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        from transformers import Wav2Vec2BertConfig
        from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertEncoder

        super().__init__()
        hidden = width_of_heads(config, llm_hidden)
        blocks = Wav2Vec2BertConfig(
            hidden_size=hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * hidden,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            conformer_conv_dropout=0.0,
            layerdrop=0.0,
            conv_depthwise_kernel_size=self.KERNEL,
            position_embeddings_type=None,  # encoder frames and the convolution tell places apart
        )
        blocks._attn_implementation = "eager"  # transformers 5 masks nothing where no implementation is named
        self.stack = config.stack
        self.norm = nn.LayerNorm(config.stack * width)
        self.enter = nn.Linear(config.stack * width, hidden)
        self.blocks = Wav2Vec2BertEncoder(blocks)
        self.output = Output(hidden, llm_hidden, scale, 1.0)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, ceil(frames / stack), llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        hidden = self.enter(self.norm(windows(frames * exists, self.stack).flatten(2)))
        mask = windows(exists, self.stack)[:, :, 0, 0]  # a window exists where its first frame does
        return self.output(self.blocks(hidden, attention_mask=mask.long()).last_hidden_state)


def width_of_heads(config: AdapterConfig, llm_hidden: int) -> int:
    """The width of an adapter's attention. Raises UserError where its heads do not divide it."""
    hidden = config.hidden or llm_hidden
    if hidden % config.heads:
        raise UserError(f"model.adapter: the width {hidden} is not a multiple of heads ({config.heads})")
    return hidden


#: By `model.adapter.kind`; packages add more (docs/plugins.md).
KINDS: dict[str, type[nn.Module]] = {
    "mlp": StackMlp,
    "swiglu": GatedMlp,
    "conv": Convolution,
    "qformer": WindowQformer,
    CLIP_QFORMER: ClipQformer,
    "transformer": TransformerAdapter,
    "conformer": Conformer,
}


class Adapter(nn.Module):
    """One of the kinds, with lengths, behind the weighted sum of layers where the encoder gives several."""

    def __init__(self, kind: nn.Module, stack: int, queries: int, mix: LayerMix | None = None) -> None:
        """`stack` is 0 where the whole clip is one window."""
        super().__init__()
        self.kind, self.stack, self.queries, self.mix = kind, stack, queries, mix

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        masked_frames: Tensor | None = None,
        masked_channels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`(clips, frames, width)` and lengths in frames to `(clips, n, llm_hidden)` and lengths in LLM positions.

        What the masks hide is hidden from the kind (`mtbi.model.masking`).
        """
        if self.mix is not None:
            features = self.mix(features)
        if masked_frames is not None and masked_channels is not None:
            features = masked(features, lengths, masked_frames, masked_channels)
        frames = self.kind(features, frame_mask(lengths, features.shape[1])[..., None])
        windows_of_clip = -(-lengths // self.stack) if self.stack else torch.ones_like(lengths)
        lengths = windows_of_clip * self.queries
        return frames * frame_mask(lengths, frames.shape[1])[..., None], lengths


@torch.no_grad()
def output_layer(adapter: Adapter, encoder_width: int) -> Output | None:
    """The `Output` layer whose values an adapter gives; None where it has none, several, or changes them afterwards.

    The windows of its input are in the order of the adapter's output. Installed kinds may have no such layer.
    """
    layers = [module for module in adapter.modules() if isinstance(module, Output)]
    if len(layers) != 1:
        return None
    weight, values = layers[0].weight, []
    hook = layers[0].register_forward_hook(lambda layer, inputs, output: values.append(output))
    count, training = 2 * (adapter.stack or 1), adapter.training
    frames = torch.arange(count * encoder_width, device=weight.device).sin().to(weight.dtype).view(1, count, encoder_width)
    try:
        made, _ = adapter.eval()(frames, torch.tensor([count], device=weight.device))
    finally:
        hook.remove()
        adapter.train(training)
    unchanged = len(values) == 1 and values[0].numel() == made.numel() and torch.equal(values[0].reshape(made.shape), made)
    return layers[0] if unchanged else None


def build_adapter(
    config: AdapterConfig,
    encoder_width: int,
    llm_hidden: int,
    embedding_rms: float = 1.0,
    taps: Mapping[str, Taps] | None = None,
) -> Adapter:
    """A fresh adapter whose outputs have about the root mean square `embedding_rms`.

    `taps` are the layers that stand side by side in the encoder's output; without any it is one layer.
    Raises UserError for an unknown kind, and for an installed one that makes another number of positions than planned.
    """
    mix = build_mix(taps or {})
    width = mix.width if mix else encoder_width
    kind = plugins.find(plugins.ADAPTERS, config.kind, KINDS, "model.adapter.kind")(config, width, llm_hidden, embedding_rms)
    if config.kind not in KINDS:
        check_shape(kind, config, width, llm_hidden)
    return Adapter(kind, adapter_stack(config), adapter_queries(config), mix)


@torch.no_grad()
def check_shape(kind: nn.Module, config: AdapterConfig, encoder_width: int, llm_hidden: int) -> None:
    """Raises UserError where three windows, the last of one frame, do not become `queries` LLM positions each."""
    count, device = 2 * config.stack + 1, next(kind.parameters()).device
    frames = torch.zeros(1, count, encoder_width, device=device)
    shape = tuple(kind(frames, torch.ones(1, count, 1, dtype=torch.bool, device=device)).shape)
    expected = (1, -(-count // config.stack) * config.queries, llm_hidden)
    if shape != expected:
        raise UserError(
            f"model.adapter.kind: {config.kind!r} makes {shape} of {count} frames; with model.adapter.stack={config.stack} and "
            f"model.adapter.queries={config.queries} it must be {expected} (docs/plugins.md)"
        )
