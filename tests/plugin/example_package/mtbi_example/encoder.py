"""An encoder without weights: log energies of 20 ms of sound in 40 bands."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.model.frame_counts import Stages
from mtbi.recipe import EncoderConfig

FRAME_SAMPLES = 320
BANDS = 40


def stages(config: EncoderConfig) -> tuple[Stages, int | None]:
    """One stage, and clips of any length."""
    return ((FRAME_SAMPLES, FRAME_SAMPLES),), None


def build(config: EncoderConfig, dtype: torch.dtype) -> nn.Module:
    """The encoder; there are no weights to read from `config.path`."""
    return Bands(dtype)


class Bands(nn.Module):
    """Whole frames only: what is left over at the end of a clip is not heard, a shorter clip is padded to one frame."""

    width = BANDS

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(clips, samples)` and lengths in samples to `(clips, frames, width)` and lengths in frames."""
        waveforms = functional.pad(waveforms.float(), (0, max(0, FRAME_SAMPLES - waveforms.shape[1])))
        spectrum = torch.fft.rfft(waveforms.unfold(1, FRAME_SAMPLES, FRAME_SAMPLES)).abs()[..., 1:]
        energy = spectrum.square().unflatten(-1, (BANDS, -1)).mean(-1)
        frames = lengths.clamp(min=FRAME_SAMPLES) // FRAME_SAMPLES
        exists = torch.arange(energy.shape[1], device=lengths.device) < frames[:, None]
        return ((energy + 1e-6).log() * exists[..., None]).to(self.dtype), frames
