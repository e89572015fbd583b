"""The packed tensors of one micro-batch: the only thing that crosses from data to model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from mtbi.batches import interleave
from mtbi.batches.plan import Group, Plan, Row
from mtbi.shards.shards import Sample


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
    features: Tensor  #: (clips, frames, width) the encoder's stored output in place of its input; (0, 0, 0) where not stored
    feature_lengths: Tensor  #: (clips,) int64, frames; else (0,)
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
        blank = {"group": torch.full_like(self.group, -1)}
        blank |= {name: torch.zeros_like(getattr(self, name)) for name in ("waveforms", "features")}
        zero = {name: torch.zeros_like(getattr(self, name)) for name in ("token_ids", "position_ids", "branch")}
        return replace(self, **none, **blank, **zero)


AUDIO_FIELDS = ("audio_slot", "audio_clip", "audio_frame")
TARGET_FIELDS = ("target_slot", "target_ids", "target_weight", "target_task", "teacher_ids", "teacher_logprobs")
WIDTH_UNIT = 64  # rows are cut to a multiple of it: few shapes, little waste
SILENT_SAMPLES = 1600  # the clip of a micro-batch without sound: every step runs the encoder


Span = tuple[int, int, int] | np.ndarray  #: (clip, first adapter frame, one past the last), or token ids


@dataclass
class RowBuilder:
    """Fills one row, left to right, and collects what the whole batch shares."""

    plan: Plan
    clips: list[np.ndarray]  #: of the batch: sound (samples,), or its features (frames, width)
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

    def put_sound(self, clip: int, first: int, stop: int, group: int, branch: int, position: int) -> None:
        """Append slots for adapter frames `first` to `stop` of a clip."""
        slot = self.base + len(self.tokens)
        self.audio.extend((slot + place, clip, first + place) for place in range(stop - first))
        self.put([0] * (stop - first), group, branch, position)

    def add_clip(self, wave: np.ndarray) -> int:
        """One more clip to encode; returns its number."""
        self.clips.append(wave)
        return len(self.clips) - 1

    def cut_speech(self, group: Group, sample: Sample) -> list[Span]:
        """The utterance, as sound or interleaved."""
        geometry, config = self.plan.geometry, self.plan.interleave
        samples = int(self.plan.index.utterances[group.utterance]["samples"])
        frames = int(geometry.frames(samples))
        sound = sample.waveform if sample.features is None else sample.features
        if group.segments is None:
            return [(self.add_clip(sound), 0, frames)]
        starts = sample.word_times[:, 0]
        whole = self.add_clip(sound) if config.cut == "slice" else -1
        spans: list[Span] = []
        for segment in group.segments:
            if segment.is_text:
                spans.append(np.concatenate(sample.word_ids[segment.first : segment.stop]))
            elif config.cut == "slice":
                first, stop = interleave.sliced_frames(segment, starts, samples, frames, geometry.samples_per_frame)
                spans.append((whole, first, stop))
            else:
                begin, end = interleave.sound_bounds(segment, starts, samples)
                if end > begin:
                    spans.append((self.add_clip(sample.waveform[begin:end]), 0, int(geometry.frames(end - begin))))
        return spans

    def put_speech(self, spans: list[Span], number: int, branch: int, position: int) -> int:
        """The spans of an utterance; returns the position after them."""
        for span in spans:
            if isinstance(span, tuple):
                clip, first, stop = span
                self.put_sound(clip, first, stop, number, branch, position)
                position += stop - first
            else:
                self.put(span, number, branch, position)
                position += len(span)
        return position

    def put_group(self, group: Group, sample: Sample, number: int) -> None:
        """Prefix and branches of one utterance."""
        prefix, prompt_first = self.plan.index.prefix_ids, self.plan.index.prompt_first
        spans = self.cut_speech(group, sample)
        self.put(prefix, number, 0, 0)
        shared = len(prefix) if prompt_first else self.put_speech(spans, number, 0, len(prefix))
        for branch, place in enumerate(group.branches, start=1):
            behaviour = sample.behaviours[place]
            prompt, answer = behaviour.after_speech_ids, behaviour.answer_ids
            task = self.plan.index.tasks.index(behaviour.task)
            weight = float(self.plan.task_weights[task])
            position = shared
            if prompt_first:
                self.put(behaviour.before_speech_ids, number, branch, position)
                position = self.put_speech(spans, number, branch, position + len(behaviour.before_speech_ids))
            first_target = self.base + len(self.tokens) + len(prompt) - 1
            self.put([*prompt, *answer[:-1]], number, branch, position)
            self.targets.extend((first_target + i, token, weight, task) for i, token in enumerate(answer))
            self.teacher_ids.append(behaviour.topk_ids)
            self.teacher_logprobs.append(behaviour.topk_logprobs)


def column(records: list[tuple], place: int, dtype: torch.dtype) -> Tensor:
    """One field of a list of records as a tensor."""
    return torch.tensor([record[place] for record in records], dtype=dtype)


def stack_clips(clips: list[np.ndarray], shortest: int) -> Tensor:
    """`(clips, longest, …)` float32, zero-padded on the right."""
    stacked = torch.zeros(len(clips), max(shortest, max(map(len, clips))), *clips[0].shape[1:])
    for place, clip in enumerate(clips):
        stacked[place, : len(clip)] = torch.from_numpy(clip)
    return stacked


def build(rows: list[Row], read: Callable[[int], Sample | None], plan: Plan) -> Batch:
    """The tensors of `rows`, as wide as the fullest row needs; `read` gives an utterance by its number in the plan's index.

    An utterance that reads as None is left out. Raises ValueError where a group does not take the slots that the plan
    counted: index and shards disagree.
    """
    fullest = max((sum(group.tokens for group in row.groups) for row in rows), default=0)
    width = min(plan.config.row_tokens, max(1, -(-fullest // WIDTH_UNIT)) * WIDTH_UNIT)
    k = plan.index.top_k
    clips: list[np.ndarray] = []
    built = []
    for place, row in enumerate(rows):
        builder = RowBuilder(plan, clips, base=place * width)
        for number, group in enumerate(row.groups):
            start = len(builder.tokens)
            if (sample := read(group.utterance)) is None:
                continue
            builder.put_group(group, sample, number)
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
    silence = [np.zeros(SILENT_SAMPLES, np.float32)]
    encoded = clips or [np.zeros((1, plan.index.feature_width), np.float32)] if plan.index.encoded else []
    sound = silence if encoded else clips or silence
    audio = [record for builder in built for record in builder.audio]
    targets = [record for builder in built for record in builder.targets]
    ids = [part for builder in built for part in builder.teacher_ids]
    logprobs = [part for builder in built for part in builder.teacher_logprobs]
    return Batch(
        token_ids=token_ids,
        position_ids=position_ids,
        group=groups,
        branch=branches,
        waveforms=stack_clips(sound, SILENT_SAMPLES),
        waveform_lengths=torch.tensor([len(clip) for clip in sound]),
        features=stack_clips(encoded, 1) if encoded else torch.zeros(0, 0, 0),
        feature_lengths=torch.tensor([len(clip) for clip in encoded], dtype=torch.int64),
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
