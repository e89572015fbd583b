"""Micro-batches on their way to a GPU.

The loader's threads put a batch into page-locked memory, in the smallest type that holds its values: sound that was stored with
16 bits, and features that were stored in half precision. The copies then run on a stream of their own, beside the kernels of
the step before. The GPU makes the same float32 values of them, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from mtbi.batches.batch import Batch

FULL_SCALE = 1 << 15  # of sound with 16 bits: its samples are whole numbers, divided by this


def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Page-locked memory, where there is a GPU to send it to."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def as_int16(waveforms: Tensor) -> Tensor | None:
    """Waveforms `(clips, samples)` times `FULL_SCALE`; None where that is not exact."""
    small = empty(waveforms.shape, torch.int16)
    for clip, whole in zip(waveforms, small, strict=True):  # one by one, so that a clip stays in the processor's cache
        if not same_bits(whole.copy_(clip * FULL_SCALE).float() / FULL_SCALE, clip):
            return None
    return small


def as_half(features: Tensor) -> Tensor | None:
    """Features `(clips, frames, width)` as float16; None where that is not exact."""
    small = empty(features.shape, torch.float16)
    for clip, half in zip(features, small, strict=True):
        if not same_bits(half.copy_(clip).float(), clip):
            return None
    return small


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two float32 tensors are equal to the bit: 0 and -0 are not."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU on which batches are copied."""
    return torch.cuda.Stream(device)


@dataclass
class PackedBatch(Batch):
    """A batch in host memory that is ready to be sent."""

    #: The fields in page-locked memory, those of `SMALL` in a smaller type where that is exact.
    packed: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, batch: Batch) -> PackedBatch:
        """Put a batch into page-locked memory."""
        made = cls(**batch.tensors())
        for name, tensor in batch.tensors().items():
            small = SMALL[name](tensor) if name in SMALL else None
            made.packed[name] = empty(tensor.shape, tensor.dtype).copy_(tensor) if small is None else small
        return made

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The batch on a device. The host does not wait for copies to a GPU, the kernels of the current stream do."""
        if not self.packed:
            return super().to(device, non_blocking)
        device = torch.device(device)
        if device.type != "cuda":
            return self._arrived(device)
        current, copies = torch.cuda.current_stream(device), copy_stream(device)
        with torch.cuda.stream(copies):
            moved = self._arrived(device)
        current.wait_stream(copies)
        for tensor in moved.tensors().values():
            tensor.record_stream(current)  # its memory is the copies' stream's, and is not given away while this one reads it
        return moved

    def _arrived(self, device: torch.device) -> Batch:
        """The batch on a device, in its own types."""
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in self.packed.items()}
        for name in SMALL:
            if tensors[name].dtype == torch.int16:
                tensors[name] = tensors[name].float() / FULL_SCALE
            tensors[name] = tensors[name].float()
        moved = Batch(**tensors)
        moved.on_host = self
        return moved


SMALL = {"waveforms": as_int16, "features": as_half}
