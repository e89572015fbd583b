"""The packed tensors of one micro-batch: the only thing that crosses from data to model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Rows of packed groups. A group is one prefix (system + audio) and K branches (prompt + answer) that share it.

    A token attends to earlier tokens of its own group that lie in the prefix (branch 0) or in its own branch. The tokens of a group
    are contiguous: the prefix, then branch 1, 2, …; positions restart after the prefix for each branch.
    """

    token_ids: Tensor  #: (rows, tokens) int64; 0 at audio slots and padding
    position_ids: Tensor  #: (rows, tokens) int64; 0 on padding
    group: Tensor  #: (rows, tokens) int32; number of the group in its row, -1 on padding
    branch: Tensor  #: (rows, tokens) int32; 0 = shared prefix, 1.. = branch; 0 on padding
    waveforms: Tensor  #: (clips, samples) float32 in [-1, 1] at 16 kHz, zero-padded on the right; at least one clip
    waveform_lengths: Tensor  #: (clips,) int64, samples
    audio_slot: Tensor  #: (frames,) int64; flat position in rows*tokens that takes an adapter frame; may be empty
    audio_clip: Tensor  #: (frames,) int64; the clip of that frame
    audio_frame: Tensor  #: (frames,) int64; the adapter frame within the clip
    target_slot: Tensor  #: (targets,) int64; flat position in rows*tokens whose hidden state predicts the target
    target_ids: Tensor  #: (targets,) int64
    target_weight: Tensor  #: (targets,) float32
    target_task: Tensor  #: (targets,) int64; index into the plan's list of tasks
    teacher_ids: Tensor  #: (targets, k) int64; the teacher's likeliest tokens, k = 0 where none are stored
    teacher_logprobs: Tensor  #: (targets, k) float32; their natural-log probabilities; -inf marks unused places

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)})
