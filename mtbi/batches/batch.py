"""The packed tensors of one micro-batch. Nothing else crosses from the data to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from mtbi.answers.store import StoredAnswer
from mtbi.answers.turns import pad_teacher
from mtbi.batches import interleave
from mtbi.batches.augment import Augmentation, Mask
from mtbi.batches.plan import Group, Plan, Row
from mtbi.shards.index import Index
from mtbi.shards.record import StoredUtterance

NO_TOKENS = 8  # width of a row without content


@dataclass
class Batch:
    """Rows of packed groups. A group is one prefix (system + audio) and K branches (prompts and answers) that share it.

    A token attends to the earlier tokens of its group in the prefix (branch 0) and in its own branch. The tokens of a group
    are contiguous: the prefix, then branch 1, 2, …. The positions of each branch start after the prefix. In a branch of several
    turns each answer predicts its targets with the earlier turns before it.
    """

    token_ids: Tensor  #: (rows, tokens) int64; 0 at audio slots and padding
    position_ids: Tensor  #: (rows, tokens) int64; 0 on padding
    group: Tensor  #: (rows, tokens) int32; number of the group in its row, -1 on padding
    branch: Tensor  #: (rows, tokens) int32; 0 = shared prefix, 1.. = branch; 0 on padding
    waveforms: Tensor  #: (clips, samples) float32 in [-1, 1] at 16 kHz, zero-padded on the right; at least one clip
    waveform_lengths: Tensor  #: (clips,) int64, samples
    features: Tensor  #: (clips, frames, width) the encoder's stored output in place of its input; (0, 0, 0) where not stored
    feature_lengths: Tensor  #: (clips,) int64, frames; else (0,)
    masked_frames: Tensor  #: (clips, frames) bool; encoder frames hidden from the adapter; (clips, 0) without augmentation
    masked_channels: Tensor  #: (clips, parts) bool; equal parts of the encoder's width that are hidden; (clips, 0) without
    spoken_ids: Tensor  #: (clips, longest) int64; the LLM tokens said in each clip, 0 beyond
    spoken_lengths: Tensor  #: (clips,) int64, tokens; 0 where they are not known
    audio_slot: Tensor  #: (frames,) int64; flat position in rows*tokens that takes an adapter frame; may be empty
    audio_clip: Tensor  #: (frames,) int64; the clip of that frame
    audio_frame: Tensor  #: (frames,) int64; the adapter frame within the clip
    target_slot: Tensor  #: (targets,) int64; flat position in rows*tokens whose hidden state predicts the target
    target_ids: Tensor  #: (targets,) int64
    target_weight: Tensor  #: (targets,) float32
    target_task: Tensor  #: (targets,) int64; index into the plan's list of tasks
    target_source: Tensor  #: (targets,) int64; index into the plan's list of folders of shards
    teacher_ids: Tensor  #: (targets, k) int64; the teacher's likeliest tokens, k = 0 where none are stored
    teacher_logprobs: Tensor  #: (targets, k) float32; their natural-log probabilities; -inf marks unused columns
    #: The same batch in host memory, where it came from there: the host need not fetch what it knows. `replace` drops it.
    on_host: Batch | None = field(default=None, init=False, repr=False, compare=False)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""
        moved = Batch(**{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors().items()})
        moved.on_host = self if self.group.device.type == "cpu" else self.on_host
        return moved

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def clips_alone(self) -> Batch:
        """The clips with one short row of padding, in which the LLM computes next to nothing."""
        none = {name: getattr(self, name)[:0] for name in (*AUDIO_FIELDS, *TARGET_FIELDS)}
        shape = (1, NO_TOKENS)
        zero = {name: getattr(self, name).new_zeros(shape) for name in ("token_ids", "position_ids", "branch")}
        alone = replace(self, **none, **zero, group=self.group.new_full(shape, -1))
        alone.on_host = self.on_host.clips_alone() if self.on_host else None
        return alone


AUDIO_FIELDS = ("audio_slot", "audio_clip", "audio_frame")
TARGET_FIELDS = (
    "target_slot", "target_ids", "target_weight", "target_task", "target_source", "teacher_ids", "teacher_logprobs",
)  # fmt: skip
WIDTH_UNIT = 64  # rows are cut to a multiple of it: few shapes, little waste
SILENT_SAMPLES = 1600  # length of the clip of a micro-batch without sound: every step runs the encoder


Span = tuple[int, int, int] | np.ndarray  #: (clip, first adapter frame, one past the last), or token ids


@dataclass
class RowBuilder:
    """Fills one row from left to right, and collects the clips of the whole batch."""

    plan: Plan
    clips: list[np.ndarray]  #: of the batch: sound (samples,), or its features (frames, width)
    spoken: list[np.ndarray]  #: the tokens said in each clip (tokens,)
    base: int  #: flat position of the row's first slot
    owners: list[tuple[Group, int]] = field(default_factory=list)  #: of the batch: each clip's group, and its number in it
    used: int = 0  #: slots of the row so far
    tokens: list[tuple[np.ndarray, int, int, int]] = field(default_factory=list)  #: (ids, group, branch, first position)
    audio: list[tuple[int, int, int, int]] = field(default_factory=list)  #: (frames, first slot, clip, first frame)
    #: (ids, first slot, weight, task, source)
    targets: list[tuple[Sequence[int], int, float, int, int]] = field(default_factory=list)
    teacher_ids: list[np.ndarray] = field(default_factory=list)
    teacher_logprobs: list[np.ndarray] = field(default_factory=list)

    def put(self, ids: Sequence[int] | np.ndarray, group: int, branch: int, position: int) -> None:
        """Append text tokens."""
        self.tokens.append((np.asarray(ids, np.int64), group, branch, position))
        self.used += len(ids)

    def put_sound(self, clip: int, first: int, stop: int, group: int, branch: int, position: int) -> None:
        """Append slots for adapter frames `first` to `stop` of a clip."""
        self.audio.append((stop - first, self.base + self.used, clip, first))
        self.put(np.zeros(stop - first, np.int64), group, branch, position)

    def add_clip(self, sound: np.ndarray, spoken_ids: np.ndarray) -> int:
        """Add a clip, `(samples,)` or `(frames, width)`, and its tokens to the batch. Returns its number."""
        self.clips.append(sound)
        self.spoken.append(spoken_ids)
        return len(self.clips) - 1

    def cut_utterance(self, group: Group, stored: StoredUtterance) -> list[Span]:
        """The utterance with the text around it."""
        before, after = (np.array(ids, np.int64) for ids in (stored.heard.before, stored.heard.after))
        return [before, *self.cut_speech(group, stored), after]

    def cut_speech(self, group: Group, stored: StoredUtterance) -> list[Span]:
        """The utterance, as sound or interleaved."""
        geometry, config = self.plan.geometry, self.plan.interleave
        samples = int(self.plan.index.utterances[group.utterance]["samples"])
        frames = int(geometry.frames(samples))
        sound = stored.waveform if stored.features is None else stored.features
        if group.segments is None:
            return [(self.add_clip(sound, stored.spoken_ids), 0, frames)]
        starts = stored.word_times[:, 0]
        whole = self.add_clip(sound, stored.spoken_ids) if config.cut == "slice" and samples else -1
        spans: list[Span] = []
        for segment in group.segments:
            ids = np.concatenate(stored.word_ids[segment.first : segment.stop])
            if segment.is_text:
                spans.append(ids)
            elif config.cut == "slice":
                first, stop = interleave.sliced_frames(segment, starts, samples, frames, geometry.samples_per_frame)
                spans.append((whole, first, stop))
            else:
                begin, end = interleave.sound_bounds(segment, starts, samples)
                if end > begin:
                    spans.append((self.add_clip(stored.waveform[begin:end], ids), 0, int(geometry.frames(end - begin))))
        return spans

    def put_speech(self, spans: list[Span], group: int, branch: int, position: int) -> int:
        """Append the spans of an utterance. Returns the position after them."""
        for span in spans:
            if isinstance(span, tuple):
                clip, first, stop = span
                self.put_sound(clip, first, stop, group, branch, position)
                position += stop - first
            else:
                self.put(span, group, branch, position)
                position += len(span)
        return position

    def put_group(self, group: Group, stored: StoredUtterance, number: int) -> None:
        """Append prefix and branches of one utterance. `number` is that of the group in its row.

        Raises ValueError where they do not take the positions that the plan counted: index and shards disagree.
        """
        start, source = self.used, self.plan.index.source_of(group.utterance)
        prefix, prompt_first = self.plan.index.prefix_ids, self.plan.index.prompt_first
        clips = len(self.clips)
        spans = self.cut_utterance(group, stored)
        self.owners.extend((group, part) for part in range(len(self.clips) - clips))
        self.put(prefix, number, 0, 0)
        shared = len(prefix) if prompt_first else self.put_speech(spans, number, 0, len(prefix))
        for branch, chosen in enumerate(group.branches, start=1):
            answer, position = stored.behaviours[chosen], shared
            if prompt_first:
                self.put(answer.before_speech_ids, number, branch, position)
                position = self.put_speech(spans, number, branch, position + len(answer.before_speech_ids))
            self.put_answer(answer, source, number, branch, position)
        if self.used - start != group.tokens:
            taken = self.used - start
            raise ValueError(f"utterance {group.utterance} takes {taken} slots, the plan says {group.tokens}")

    def put_answer(self, answer: StoredAnswer, source: int, group: int, branch: int, position: int) -> None:
        """Append what follows the speech, turn after turn, and the targets of each supervised answer."""
        task = self.plan.index.tasks.index(answer.task)
        weight = float(self.plan.task_weights[task])
        turns = answer.turns
        for turn in turns:
            first_target = self.base + self.used + len(turn.prompt_ids) - 1
            ids = turn.answer_ids
            tokens = [*turn.prompt_ids, *ids]
            self.put(tokens[:-1] if turn is turns[-1] else tokens, group, branch, position)  # the last is never an input
            position += len(tokens)
            if turn.supervised:
                self.targets.append((ids, first_target, weight, task, source))
                topk_ids, topk_logprobs = pad_teacher(turn.topk_ids, turn.topk_logprobs, self.plan.index.top_k)
                self.teacher_ids.append(topk_ids)
                self.teacher_logprobs.append(topk_logprobs)


def spread(records: Sequence[tuple], number: int, counts: Sequence[int], rising: bool, dtype: type) -> Tensor:
    """Field `number` of each record, as often as `counts` says, in one tensor. A `rising` one grows by 1 each time."""
    times = np.array(counts, np.int64)
    values: np.ndarray = np.repeat(np.array([record[number] for record in records], dtype), times)
    if rising:
        values += np.arange(len(values)) - np.repeat(np.cumsum(times) - times, times)
    return torch.from_numpy(values)


def joined(arrays: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Token ids one after another, int64."""
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *arrays], dtype=np.int64, casting="unsafe"))


def stack(arrays: list[np.ndarray], shortest: int, dtype: torch.dtype) -> Tensor:
    """`(arrays, longest, …)`, with 0 or false on the right of shorter ones. `shortest` is the least length of the result."""
    stacked = torch.zeros(len(arrays), max(shortest, *map(len, arrays)), *arrays[0].shape[1:], dtype=dtype)
    for number, array in enumerate(arrays):
        stacked[number, : len(array)] = torch.from_numpy(array)
    return stacked


def build(
    rows: list[Row],
    read: Callable[[int], StoredUtterance | None],
    plan: Plan,
    augmentation: Augmentation | None = None,
) -> Batch:
    """The tensors of `rows`, as wide as the fullest row needs. `read` gives an utterance by its number in the plan's index.

    An utterance that reads as None is left out. Raises ValueError as `RowBuilder.put_group` does, and UserError for recordings
    of the augmentation that cannot be read.
    """
    fullest = max((sum(group.tokens for group in row.groups) for row in rows), default=0)
    width = min(plan.config.row_tokens, max(1, -(-fullest // WIDTH_UNIT)) * WIDTH_UNIT)
    clips: list[np.ndarray] = []
    spoken: list[np.ndarray] = []
    owners: list[tuple[Group, int]] = []
    builders = [RowBuilder(plan, clips, spoken, number * width, owners) for number in range(len(rows))]
    for builder, row in zip(builders, rows, strict=True):
        for number, group in enumerate(row.groups):
            if (stored := read(group.utterance)) is not None:
                heard = augmentation.heard(stored, group) if augmentation else stored
                builder.put_group(group, heard, number)
    masks = augmentation.masks(clips, owners, bool(plan.index.encoded)) if augmentation else []
    clip_columns = clip_tensors(clips, plan.index, masks) | spoken_tensors(spoken)
    return Batch(**token_tensors(builders, width), **clip_columns, **target_tensors(builders, plan.index))


def token_tensors(builders: list[RowBuilder], width: int) -> dict[str, Tensor]:
    """Tokens, positions, groups and branches, `(rows, width)`, padded on the right."""
    shape = (len(builders), width)
    token_ids, position_ids = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    groups, branches = torch.full(shape, -1, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    for row, builder in enumerate(builders):
        inside, counts = slice(builder.used), [len(ids) for ids, *_ in builder.tokens]
        token_ids[row, inside] = joined([ids for ids, *_ in builder.tokens])
        groups[row, inside] = spread(builder.tokens, 1, counts, False, np.int32)
        branches[row, inside] = spread(builder.tokens, 2, counts, False, np.int32)
        position_ids[row, inside] = spread(builder.tokens, 3, counts, True, np.int64)
    return {"token_ids": token_ids, "position_ids": position_ids, "group": groups, "branch": branches}


def clip_tensors(clips: list[np.ndarray], index: Index, masks: Sequence[Mask] = ()) -> dict[str, Tensor]:
    """The clips as sound, or as features where the shards hold those. Without clips there is a silent one.

    `masks` are those of all clips; without any, nothing is hidden.
    """
    nothing = [np.zeros(0, bool)] * max(1, len(clips))
    encoded = (clips or [np.zeros((1, index.feature_width), np.float32)]) if index.encoded else []
    sound = [np.zeros(SILENT_SAMPLES, np.float32)] if index.encoded or not clips else clips
    return {
        "waveforms": stack(sound, SILENT_SAMPLES, torch.float32),
        "waveform_lengths": torch.tensor([len(clip) for clip in sound]),
        "features": stack(encoded, 1, torch.float32) if encoded else torch.zeros(0, 0, 0),
        "feature_lengths": torch.tensor([len(clip) for clip in encoded], dtype=torch.int64),
        "masked_frames": stack([mask.frames for mask in masks] or nothing, 0, torch.bool),
        "masked_channels": stack([mask.channels for mask in masks] or nothing, 0, torch.bool),
    }


def spoken_tensors(spoken: list[np.ndarray]) -> dict[str, Tensor]:
    """The tokens said in each clip. Without clips there is one clip without tokens."""
    spoken = spoken or [np.zeros(0, np.int64)]
    return {"spoken_ids": stack(spoken, 1, torch.int64), "spoken_lengths": torch.tensor([len(own) for own in spoken])}


def target_tensors(builders: list[RowBuilder], index: Index) -> dict[str, Tensor]:
    """Slots of the sound, targets and the teacher of all rows."""
    audio = [record for builder in builders for record in builder.audio]
    targets = [record for builder in builders for record in builder.targets]
    ids = [answer for builder in builders for answer in builder.teacher_ids]
    logprobs = [answer for builder in builders for answer in builder.teacher_logprobs]
    none = torch.zeros(0, index.top_k)
    frames, tokens = [count for count, *_ in audio], [len(own) for own, *_ in targets]
    return {
        "audio_slot": spread(audio, 1, frames, True, np.int64),
        "audio_clip": spread(audio, 2, frames, False, np.int64),
        "audio_frame": spread(audio, 3, frames, True, np.int64),
        "target_slot": spread(targets, 1, tokens, True, np.int64),
        "target_ids": joined([own for own, *_ in targets]),
        "target_weight": spread(targets, 2, tokens, False, np.float32),
        "target_task": spread(targets, 3, tokens, False, np.int64),
        "target_source": spread(targets, 4, tokens, False, np.int64),
        "teacher_ids": torch.from_numpy(np.concatenate(ids)).long() if ids else none.long(),
        "teacher_logprobs": torch.from_numpy(np.concatenate(logprobs)).float() if logprobs else none,
    }
