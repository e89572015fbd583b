"""Simulated scenes: utterances of several speakers on one recording, with the gaps and overlaps of real meetings.

Scene number i of a seed is a pure function of the manifests, the settings and (seed, i): more scenes do not change the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mtbi import files
from mtbi.audio import codec
from mtbi.audio.sound_files import below
from mtbi.corpus import recordings
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.corpus.pauses import FRAME_SAMPLES, loud_frames
from mtbi.corpus.talkers import ask_about_talkers
from mtbi.errors import UserError
from mtbi.scenes.segments import SpeakerSegment
from mtbi.scenes.serialised import SEPARATOR
from mtbi.scenes.turns import MEETINGS, TurnStatistics, draw_speakers, draw_starts
from mtbi.scenes.write import record, write_segments

#: Root mean square of the loud frames of each utterance in a scene, before its own level: -26 dB of full scale.
LOUDNESS = 0.05
#: The loudest sample of a scene. A louder scene is made quieter as a whole, and its manifest line says by how much.
PEAK = 0.95


@dataclass(frozen=True)
class MixSettings:
    """What scenes are like. Raises UserError for numbers that exclude each other."""

    scenes: int
    seed: int = 0
    speakers: tuple[int, int] = (2, 3)  #: fewest and most in a scene
    turns: int = 6  #: at least as many as speakers
    longest: float = 30.0  #: seconds; turns that would end later are left out, so a scene may have fewer turns and speakers
    level_db: float = 3.0  #: how far the levels of two utterances may lie above or below the common one
    statistics: TurnStatistics = MEETINGS
    separator: str = SEPARATOR  #: between talkers in right answers, see `mtbi.scenes.serialised.parse_separator`

    def __post_init__(self) -> None:
        fewest, most = self.speakers
        if not 1 <= fewest <= most:
            raise UserError(
                f"scenes of {fewest} to {most} speakers: the first number must be at least 1, and at most the second"
            )
        if self.turns < most:
            raise UserError(f"{self.turns} turns are too few for scenes with {most} speakers; give at least {most}")


@dataclass(frozen=True)
class MixedScene:
    """One scene: `(samples,)` at 16 kHz, who says what when, the language if it is one, and right answers by task.

    `about` says what the mixing did, and has the values that prompts name (`mtbi.corpus.talkers`).
    """

    wave: np.ndarray
    segments: list[SpeakerSegment]
    language: str
    about: dict[str, Any]
    answers: dict[str, str]


def mix(manifests: Sequence[Path], out: Path, settings: MixSettings) -> tuple[int, int]:
    """Write `out/audio/*.flac`, `out/ref.json` (SegLST) and `out/manifest.jsonl`.

    Returns the number of speakers to draw from, and the number of utterances left out because they are longer than
    `settings.longest`.

    A line of the manifest has the words in the order of their segments' starts as its text, `segments`, and right answers about
    the talkers. The manifest is written last. Raises UserError for a folder that is not empty, where utterances lack speakers
    or hold the separator, where there are too few speakers, and for recordings that cannot be read.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; give a new one, or remove it")
    whole = read_voices(manifests)
    voices = fitting(whole, settings.longest)
    if len(voices) < settings.speakers[1]:
        raise UserError(f"scenes with {settings.speakers[1]} speakers need as many in the manifests, which have {len(voices)}")
    (out / "audio").mkdir(parents=True, exist_ok=True)
    utterances, segments = [], []
    for number, scene in enumerate(mixed_scenes(voices, settings)):
        name = f"scene-{settings.seed}-{number:06}"
        path = out / "audio" / f"{name}.flac"
        with files.whole(path) as temporary:
            temporary.write_bytes(codec.encode(scene.wave))
        segments += [replace(segment, session_id=name) for segment in scene.segments]
        utterances.append(_line(name, path.relative_to(out), scene))
    write_segments(out / "ref.json", segments)
    write_manifest(out / "manifest.jsonl", utterances)
    return len(voices), sum(map(len, whole.values())) - sum(map(len, voices.values()))


def fitting(voices: Mapping[str, list[Utterance]], longest: float) -> dict[str, list[Utterance]]:
    """The utterances that are not known to be longer than `longest` seconds, by speaker. Speakers without any are left out."""
    kept = {speaker: [one for one in utterances if one.duration_s <= longest] for speaker, utterances in voices.items()}
    return {speaker: utterances for speaker, utterances in kept.items() if utterances}


def read_voices(manifests: Sequence[Path]) -> dict[str, list[Utterance]]:
    """The utterances of each speaker with absolute paths, speakers and utterances in a fixed order.

    Utterances without sound or transcript are left out. Raises UserError for one without a speaker.
    """
    voices: dict[str, list[Utterance]] = {}
    for manifest in manifests:
        for utterance in read_manifest(manifest):
            if utterance.audio and utterance.text.strip():
                if not utterance.speaker:
                    raise UserError(f"{manifest}: {utterance.id} has no speaker; scenes need the speaker of every utterance")
                found = replace(utterance, audio=below(manifest.parent, utterance.audio))
                voices.setdefault(utterance.speaker, []).append(found)
    return {speaker: sorted(voices[speaker], key=lambda utterance: utterance.id) for speaker in sorted(voices)}


def mixed_scenes(voices: Mapping[str, list[Utterance]], settings: MixSettings) -> Iterator[MixedScene]:
    """The scenes one after the other."""
    for number in range(settings.scenes):
        draw = Random(f"{settings.seed}/{number}")
        speakers = draw.sample(list(voices), draw.randint(*settings.speakers))
        order = draw_speakers(settings.statistics, speakers, settings.turns, draw)
        left: dict[str, list[Utterance]] = {}
        chosen = []
        for speaker in order:  # none is said twice before all were said
            left[speaker] = left.get(speaker) or draw.sample(voices[speaker], len(voices[speaker]))
            chosen.append(left[speaker].pop())
        yield _scene(chosen, settings, draw)


def _scene(chosen: Sequence[Utterance], settings: MixSettings, draw: Random) -> MixedScene:
    """The sound of utterances in a row, with their starts drawn."""
    clips = [spoken(utterance) for utterance in chosen]
    turns = [(utterance.speaker, len(clip) / codec.SAMPLE_RATE) for utterance, clip in zip(chosen, clips, strict=True)]
    starts: list[int] = []
    ends: dict[str, int] = {}
    for (speaker, _), clip, seconds in zip(turns, clips, draw_starts(settings.statistics, turns, draw), strict=True):
        start = max(round(seconds * codec.SAMPLE_RATE), ends.get(speaker, 0))  # rounding must not make own turns overlap
        if start + len(clip) > settings.longest * codec.SAMPLE_RATE:
            break
        starts.append(start)
        ends[speaker] = start + len(clip)
    if not starts:
        raise UserError(
            f"{chosen[0].audio}: longer than scenes may be ({settings.longest:g} s); leave it out, or allow longer ones"
        )
    chosen, clips = chosen[: len(starts)], clips[: len(starts)]
    wave = np.zeros(max(start + len(clip) for start, clip in zip(starts, clips, strict=True)), np.float32)
    segments = []
    for utterance, clip, start in zip(chosen, clips, starts, strict=True):
        level = draw.uniform(-settings.level_db, settings.level_db)
        wave[start : start + len(clip)] += np.float32(10 ** (level / 20)) * clip
        span = start / codec.SAMPLE_RATE, (start + len(clip)) / codec.SAMPLE_RATE
        more = {"utterance": utterance.id, "level_db": round(level, 2)}
        segments.append(SpeakerSegment("scene", utterance.speaker, *span, utterance.text, more))
    peak = float(np.abs(wave).max())
    about: dict[str, Any] = {"num_speakers": len(ends)}
    if peak > PEAK:
        wave *= np.float32(PEAK / peak)
        about["quieter_by_db"] = round(20 * float(np.log10(peak / PEAK)), 2)
    languages = {utterance.language for utterance in chosen}
    genders = {utterance.speaker: str(utterance.extra.get("gender") or "") for utterance in chosen}
    fields, answers = ask_about_talkers(segments, settings.separator, draw, genders)
    return MixedScene(wave, segments, languages.pop() if len(languages) == 1 else "", about | fields, answers)


def spoken(utterance: Utterance) -> np.ndarray:
    """The sound of an utterance from its first to its last loud frame, `(samples,)` at 16 kHz, with a common loudness."""
    try:
        wave = recordings.read(utterance, "")
    except UserError as error:
        raise UserError(f"{utterance.audio} (utterance {utterance.id}): {error}") from error
    frames = np.flatnonzero(loud_frames(wave))
    if not (len(frames) and wave.any()):
        raise UserError(f"{utterance.audio} (utterance {utterance.id}): silent; leave it out of the manifest")
    clip = wave[frames[0] * FRAME_SAMPLES : (frames[-1] + 1) * FRAME_SAMPLES]
    loud = np.concatenate([wave[frame * FRAME_SAMPLES : (frame + 1) * FRAME_SAMPLES] for frame in frames])
    return clip * np.float32(LOUDNESS / np.sqrt(np.square(loud, dtype=np.float64).mean()))


def _line(name: str, audio: Path, scene: MixedScene) -> Utterance:
    """The manifest's line of a scene."""
    parts = [{key: value for key, value in record(segment).items() if key != "session_id"} for segment in scene.segments]
    return Utterance(
        name,
        audio.as_posix(),
        " ".join(segment.words or "" for segment in scene.segments),
        speaker=",".join(dict.fromkeys(segment.speaker for segment in scene.segments)),
        duration_s=len(scene.wave) / codec.SAMPLE_RATE,
        language=scene.language,
        sample_rate=codec.SAMPLE_RATE,
        answers=scene.answers,
        extra={**scene.about, "segments": parts},
    )
