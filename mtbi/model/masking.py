"""Masks on an encoder's output (`mtbi.batches.augment`), with a clip's mean in place of what they hide.

SpecAugment fills with zeros, which are the mean, because its features are normalised. An encoder's output is not: some of its
channels stay far from zero. Zeros would move the adapter's layer norm, and they are what an adapter gets beyond the end of a
clip. wav2vec 2.0 fills with a trained vector, which a frozen encoder does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mtbi.model.encoders.protocol import frame_mask


def masked(features: Tensor, lengths: Tensor, frames: Tensor, channels: Tensor) -> Tensor:
    """`features` `(clips, frames, width)` of clips of `lengths` `(clips,)`, with each clip's mean frame where it is hidden.

    `frames` `(clips, frames)` and `channels` `(clips, parts)` are true where something is hidden. The parts share the width
    evenly. Without augmentation both have no columns, and the features stay as they are.
    """
    if not frames.shape[1]:
        return features
    count, width = features.shape[1:]
    exists = frame_mask(lengths, count)[..., None]
    mean = (features.detach() * exists).sum(1, keepdim=True, dtype=torch.float32) / lengths.clamp(min=1)[:, None, None]
    part = torch.arange(width, device=channels.device) * channels.shape[1] // width
    hidden = functional.pad(frames, (0, count - frames.shape[1]))[..., None] | channels[:, part][:, None]
    return torch.where(hidden, mean.to(features.dtype), features)
