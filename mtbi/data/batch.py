"""The packed tensors of one micro-batch: the only thing that crosses from data to model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from mtbi.data import interleave
from mtbi.data.plan import Group, Plan, Row
from mtbi.data.shards import Sample


@dataclass
class Batch:
    """Rows of packed groups. A group is one prefix (system + audio) and K branches (prompt + answer) that share it.

    A token attends to earlier tokens of its own group that lie in the prefix (branch 0) or in its own branch. The
    tokens of a group are contiguous: the prefix, then branch 1, 2, …; positions restart after the prefix for each
    branch.
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

    def emptied(self) -> Batch:
        """A batch of the same shape with no group, no sound slot and no target: its loss is 0 and so is its gradient."""
        none = {name: getattr(self, name)[:0] for name in (*AUDIO_FIELDS, *TARGET_FIELDS)}
        blank = {"group": torch.full_like(self.group, -1), "waveforms": torch.zeros_like(self.waveforms)}
        zero = {name: torch.zeros_like(getattr(self, name)) for name in ("token_ids", "position_ids", "branch")}
        return replace(self, **none, **blank, **zero)


AUDIO_FIELDS = ("audio_slot", "audio_clip", "audio_frame")
TARGET_FIELDS = ("target_slot", "target_ids", "target_weight", "target_task", "teacher_ids", "teacher_logprobs")
SILENT_SAMPLES = 1600  # the clip of a micro-batch without sound: every step runs the encoder


@dataclass
class RowBuilder:
    """Fills one row, left to right, and collects what the whole batch shares."""

    plan: Plan
    clips: list[np.ndarray]  #: of the batch
    base: int  #: flat position of the row's first slot
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    audio: list[tuple[int, int, int]] = field(default_factory=list)  #: (slot, clip, frame)
    targets: list[tuple[int, int, float, int]] = field(default_factory=list)  #: (slot, token, weight, task)
    teacher_ids: list[np.ndarray] = field(default_factory=list)
    teacher_logprobs: list[np.ndarray] = field(default_factory=list)

    def put(self, ids: list[int] | np.ndarray, group: int, branch: int, position: int) -> None:
        """Append text tokens."""
        self.tokens.extend(int(i) for i in ids)
        self.positions.extend(range(position, position + len(ids)))
        self.groups.extend([group] * len(ids))
        self.branches.extend([branch] * len(ids))

    def put_sound(self, clip: int, first: int, stop: int, group: int, position: int) -> None:
        """Append slots for adapter frames `first` to `stop` of a clip."""
        slot = self.base + len(self.tokens)
        self.audio.extend((slot + place, clip, first + place) for place in range(stop - first))
        self.put([0] * (stop - first), group, 0, position)

    def add_clip(self, wave: np.ndarray) -> int:
        """One more clip to encode; returns its number."""
        self.clips.append(wave)
        return len(self.clips) - 1

    def put_speech(self, group: Group, sample: Sample, number: int, position: int) -> int:
        """The utterance, as sound or interleaved; returns the position after it."""
        geometry, config = self.plan.geometry, self.plan.interleave
        samples = len(sample.waveform)
        frames = int(geometry.frames(samples))
        if group.segments is None:
            self.put_sound(self.add_clip(sample.waveform), 0, frames, number, position)
            return position + frames
        starts = sample.word_times[:, 0]
        whole = self.add_clip(sample.waveform) if config.cut == "slice" else -1
        for segment in group.segments:
            if segment.is_text:
                ids = np.concatenate(sample.word_ids[segment.first : segment.stop])
                self.put(ids, number, 0, position)
                position += len(ids)
            elif config.cut == "slice":
                first, stop = interleave.sliced_frames(segment, starts, samples, frames, geometry.samples_per_frame)
                self.put_sound(whole, first, stop, number, position)
                position += stop - first
            else:
                begin, end = interleave.sound_bounds(segment, starts, samples)
                if end > begin:
                    length = int(geometry.frames(end - begin))
                    self.put_sound(self.add_clip(sample.waveform[begin:end]), 0, length, number, position)
                    position += length
        return position

    def put_group(self, group: Group, sample: Sample, number: int) -> None:
        """Prefix and branches of one utterance."""
        prefix = self.plan.index.prefix_ids
        self.put(prefix, number, 0, 0)
        after_speech = self.put_speech(group, sample, number, len(prefix))
        for branch, place in enumerate(group.branches, start=1):
            behaviour = sample.behaviours[place]
            prompt, answer = behaviour.prompt_ids, behaviour.answer_ids
            task = self.plan.index.tasks.index(behaviour.task)
            weight = float(self.plan.task_weights[task])
            first_target = self.base + len(self.tokens) + len(prompt) - 1
            self.put([*prompt, *answer[:-1]], number, branch, after_speech)
            self.targets.extend((first_target + i, token, weight, task) for i, token in enumerate(answer))
            self.teacher_ids.append(behaviour.topk_ids)
            self.teacher_logprobs.append(behaviour.topk_logprobs)


def column(records: list[tuple], place: int, dtype: torch.dtype) -> Tensor:
    """One field of a list of records as a tensor."""
    return torch.tensor([record[place] for record in records], dtype=dtype)


def build(rows: list[Row], read: Callable[[int], Sample], plan: Plan) -> Batch:
    """The tensors of `rows`; `read` gives an utterance by its number in the plan's index.

    Raises ValueError where a group does not take the slots that the plan counted: index and shards disagree.
    """
    width, k = plan.config.row_tokens, plan.index.top_k
    clips: list[np.ndarray] = []
    built = []
    for place, row in enumerate(rows):
        builder = RowBuilder(plan, clips, base=place * width)
        for number, group in enumerate(row.groups):
            start = len(builder.tokens)
            builder.put_group(group, read(group.utterance), number)
            if len(builder.tokens) - start != group.tokens:
                raise ValueError(
                    f"utterance {group.utterance} takes {len(builder.tokens) - start} slots, the plan says {group.tokens}"
                )
        built.append(builder)
    shape = (len(rows), width)
    token_ids, position_ids = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    groups, branches = torch.full(shape, -1, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    for place, builder in enumerate(built):
        used = len(builder.tokens)
        token_ids[place, :used] = torch.tensor(builder.tokens)
        position_ids[place, :used] = torch.tensor(builder.positions)
        groups[place, :used] = torch.tensor(builder.groups, dtype=torch.int32)
        branches[place, :used] = torch.tensor(builder.branches, dtype=torch.int32)
    clips = clips or [np.zeros(SILENT_SAMPLES, np.float32)]
    waveforms = torch.zeros(len(clips), max(SILENT_SAMPLES, max(map(len, clips))))
    for place, clip in enumerate(clips):
        waveforms[place, : len(clip)] = torch.from_numpy(clip)
    audio = [record for builder in built for record in builder.audio]
    targets = [record for builder in built for record in builder.targets]
    ids = [part for builder in built for part in builder.teacher_ids]
    logprobs = [part for builder in built for part in builder.teacher_logprobs]
    return Batch(
        token_ids=token_ids,
        position_ids=position_ids,
        group=groups,
        branch=branches,
        waveforms=waveforms,
        waveform_lengths=torch.tensor([len(clip) for clip in clips]),
        audio_slot=column(audio, 0, torch.int64),
        audio_clip=column(audio, 1, torch.int64),
        audio_frame=column(audio, 2, torch.int64),
        target_slot=column(targets, 0, torch.int64),
        target_ids=column(targets, 1, torch.int64),
        target_weight=column(targets, 2, torch.float32),
        target_task=column(targets, 3, torch.int64),
        teacher_ids=torch.from_numpy(np.concatenate(ids)).long() if ids else torch.zeros(0, k, dtype=torch.int64),
        teacher_logprobs=torch.from_numpy(np.concatenate(logprobs)).float() if logprobs else torch.zeros(0, k),
    )
