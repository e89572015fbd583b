"""The miniature speech encoder: log-mel, convolutions over time and pitch, transformer layers, a CTC head over ten digits.

It stands for Whisper or WavLM in a real run. `mtbi.demo.pretrain_encoder` trained it; runs keep it frozen. It makes 25 frames a
second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mtbi.corpus.ctc_aligner import CtcAligner
from mtbi.demo.world import DIGITS
from mtbi.model.encoders.build import MINIATURE
from mtbi.model.encoders.pretrained import keep_layers, output_layers
from mtbi.model.encoders.protocol import (
    SAMPLE_RATE,
    Architecture,
    ComputedFeatures,
    EncoderFacts,
    SpeechEncoder,
    Stages,
    frame_mask,
    output_name,
)
from mtbi.recipe import EncoderConfig

HOP_SAMPLES = 160
BLANK = 0
STRIDES = ((2, 2), (1, 2), (2, 2))  #: of the convolutions, over time and over mel bands
#: Log-mel frames, then the convolutions with a stride over time, padded so that each output rounds up.
DEMO_STAGES: Stages = ((1, HOP_SAMPLES), (1, 2), (1, 2))
# Levels are natural logarithms of energy: 1 is 4.3 dB.
QUIETEST = 1e-6  #: energy added before the logarithm
FLOOR = 10.0  #: features further than this below a clip's largest are raised to that level
SPEECH = 4.0  #: a frame is speech if its mean over the bands is less than this below the loudest frame's
PACKAGED_FOLDER = Path(__file__).parent / "weights" / "encoder"


@dataclass(frozen=True)
class DemoEncoderConfig:
    """Sizes of the encoder."""

    mels: int = 40  #: mel bands between 60 Hz and 4 kHz: the recordings of spoken digits hold nothing above
    channels: int = 32  #: of the first convolution; the others have twice as many
    width: int = 144
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1


class DigitLogMel(ComputedFeatures):
    """Log-mel features `(clips, ceil(samples / 160), mels)`, each band normalised over the speech, zero beyond a clip's length.

    Values far below the loudest one are raised to one level, and quiet frames do not count for mean and deviation. So neither
    the noise of a recording nor the length of its pauses changes the features of its speech.
    """

    def __init__(self, mels: int) -> None:
        super().__init__()
        self.mels = mels
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE,
            n_fft=512,
            win_length=400,
            hop_length=HOP_SAMPLES,
            f_min=60,
            f_max=4000,
            n_mels=mels,
            pad_mode="constant",
        )

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`waveforms` is `(clips, samples)`, zero beyond `lengths` (samples). Returns features and their lengths in frames."""
        frames = -(-lengths // HOP_SAMPLES)
        energy = self.mel(waveforms.float())[..., : -(-waveforms.shape[1] // HOP_SAMPLES)].transpose(1, 2)
        mask = frame_mask(frames, energy.shape[1])[..., None]
        features = (energy * mask + QUIETEST).log()
        features = features.maximum(features.amax((1, 2), keepdim=True) - FLOOR)
        level = features.mean(2, keepdim=True)
        speech = mask & (level > level.amax(1, keepdim=True) - SPEECH)
        count = speech.sum(1, keepdim=True).clamp(min=1)
        mean = (features * speech).sum(1, keepdim=True) / count
        deviation = (((features - mean) * speech).square().sum(1, keepdim=True) / count).sqrt()
        return (features - mean) / (deviation + 0.3) * mask, frames

    def fresh_buffers(self) -> Mapping[str, Tensor]:
        """Filters and window of the spectrogram."""
        return dict(DigitLogMel(self.mels).named_buffers())


class DemoEncoder(SpeechEncoder):
    """Waveforms to features `(clips, frames, width)` at 25 Hz: ceil(ceil(ceil(samples / 160) / 2) / 2) frames."""

    takes_lora = False  # torch's fused transformer layer reads the base weights and skips a low-rank update

    def __init__(self, config: DemoEncoderConfig, chosen: Sequence[int] = ()) -> None:
        """The output are the hidden layers `chosen`, each after the final norm; without any it is the last one."""
        super().__init__()
        self.config = config
        self.output_layers = tuple(chosen) or (config.layers,)
        self.width = config.width * len(self.output_layers)
        width, channels = config.width, config.channels
        with torch.device("cpu"):  # torchaudio computes its filters, which a model without memory cannot
            self.features = DigitLogMel(config.mels)
        sizes = pairwise((1, channels, 2 * channels, 2 * channels))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1) for (before, after), stride in zip(sizes, STRIDES, strict=True)
        )
        flat = 2 * channels * -(-config.mels // 8)
        self.flat_norm = nn.LayerNorm(flat)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(flat, width)
        # Positions by a depthwise convolution, as wav2vec 2.0 does: works for any length.
        self.position = nn.Conv1d(width, width, kernel_size=15, padding=7, groups=width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 3 * width, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.ctc = nn.Linear(width, 1 + len(DIGITS))

    def encode(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """From log-mel `(clips, frames, mels)` and lengths to encoder features and lengths."""
        hidden = features.to(self.project.weight.dtype)[:, None]
        for convolution, (over_time, _) in zip(self.convolutions, STRIDES, strict=True):
            frames = -(-frames // over_time)
            hidden = functional.gelu(convolution(hidden))
            hidden = hidden * frame_mask(frames, hidden.shape[2])[:, None, :, None]
        mask = frame_mask(frames, hidden.shape[2])
        hidden = self.project(self.dropout(self.flat_norm(hidden.transpose(1, 2).flatten(2))))
        hidden = (hidden * mask[..., None]).transpose(1, 2)
        hidden = hidden + functional.gelu(self.position(hidden)) * mask[:, None]
        hidden = hidden.transpose(1, 2)
        if len(self.output_layers) == 1 and len(self.layers.layers):
            return self.norm(self.layers(hidden, src_key_padding_mask=~mask)) * mask[..., None], frames
        states = [hidden] if 0 in self.output_layers else []
        for number, layer in enumerate(self.layers.layers, 1):
            hidden = layer(hidden, src_key_padding_mask=~mask)
            if number in self.output_layers:
                states.append(hidden)
        return torch.cat([self.norm(state) for state in states], 2) * mask[..., None], frames

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` at 16 kHz and lengths in samples to features `(clips, frames, width)` and lengths in frames."""
        return self.encode(*self.features(waveforms, lengths))

    def log_probabilities(self, features: Tensor) -> Tensor:
        """CTC log-probabilities `(clips, frames, 11)` of encoder features; class 0 is blank, digit d is class d + 1."""
        return self.ctc(features).float().log_softmax(-1)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` (float16: half the size, no measured loss)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": MINIATURE, **asdict(self.config)}, indent=1) + "\n")
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path | str = PACKAGED_FOLDER, chosen: Sequence[int] = ()) -> DemoEncoder:
        """Read what `save` wrote, as float32 in evaluation mode. `chosen` is as in the constructor."""
        encoder = cls(DemoEncoderConfig(**read_sizes(folder)), chosen)
        encoder.load_state_dict({name: value.float() for name, value in load_file(Path(folder) / "model.safetensors").items()})
        return encoder.eval()


def read_sizes(folder: Path | str = PACKAGED_FOLDER) -> Architecture:
    """The fields of `DemoEncoderConfig` of a saved encoder."""
    sizes = json.loads((Path(folder) / "config.json").read_text())
    return {name: value for name, value in sizes.items() if name != "model_type"}


class DemoFamily:
    """The encoder with the path `demo`, for `mtbi.model.encoders.build`."""

    def __init__(self, trust_remote_code: bool = False) -> None:
        """It has no remote code."""

    def facts(self, config: EncoderConfig, /) -> EncoderFacts:
        """The output's name has a digest of the weights, which come with the package and change with its version."""
        digest = sha256((PACKAGED_FOLDER / "model.safetensors").read_bytes()).hexdigest()[:8]
        return EncoderFacts(f"demo {digest}{output_name(config).removeprefix('demo')}", (config.path,), config.trainable)

    def stages(self, config: EncoderConfig, /) -> tuple[Stages, int | None]:
        """Clips may have any length."""
        return DEMO_STAGES, None

    def build(self, config: EncoderConfig, dtype: torch.dtype, /) -> nn.Module:
        """Parameters in `dtype`; the filters, and so the features, stay in float32."""
        chosen = output_layers(DemoEncoderConfig(**read_sizes()).layers, config)
        encoder = DemoEncoder.from_pretrained(chosen=chosen)
        encoder.layers.layers = keep_layers(encoder.layers.layers, config)
        for parameter in encoder.parameters():
            parameter.data = parameter.data.to(dtype)
        return encoder

    def describe(self, config: EncoderConfig, /) -> Architecture:
        """The sizes of the shipped encoder."""
        sizes = read_sizes()
        chosen = output_layers(sizes["layers"], config)
        return (
            sizes | {"model_type": MINIATURE, "layers": chosen[-1]} | ({"output_layers": list(chosen)} if config.layers else {})
        )

    def empty(self, architecture: Architecture, /) -> nn.Module:
        """Random weights."""
        sizes = {name: value for name, value in architecture.items() if name not in ("model_type", "output_layers")}
        return DemoEncoder(DemoEncoderConfig(**sizes), architecture.get("output_layers", ()))


class DemoAligner(CtcAligner):
    """Emissions and labels for `mtbi.corpus.align`: one CTC label for each digit word."""

    blank = BLANK
    delimiter: int | None = None

    def __init__(self, encoder: DemoEncoder | None = None) -> None:
        self.encoder = encoder or DemoEncoder.from_pretrained()

    @torch.no_grad()
    def emissions(self, waveform: np.ndarray) -> tuple[Tensor, float]:
        """Log-probabilities `(frames, 11)` of one utterance and the seconds between frames."""
        wave = torch.from_numpy(waveform)[None]
        features, _ = self.encoder(wave, torch.tensor([wave.shape[1]]))
        return self.encoder.log_probabilities(features)[0], 4 * HOP_SAMPLES / SAMPLE_RATE

    def labels(self, word: str) -> list[int]:
        """The CTC classes of a word; none for a word that is no digit."""
        return [DIGITS.index(word) + 1] if word in DIGITS else []

    def transcribe(self, waveform: np.ndarray) -> str:
        """Greedy CTC transcript of one utterance."""
        best = self.emissions(waveform)[0].argmax(-1).unique_consecutive()
        return " ".join(DIGITS[label - 1] for label in best.tolist() if label != BLANK)
