from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec
from mtbi.cli import main
from mtbi.corpus.manifest import read_manifest
from mtbi.corpus.mix import LOUDNESS, MixSettings, mix, mixed_scenes, read_voices
from mtbi.errors import UserError
from mtbi.scenes import read_segments

PITCHES = {"ann": 300, "bob": 1000, "cem": 3000}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three speakers with a tone each, four utterances of 0.5 to 0.8 s between silences, of different loudness."""
    lines = []
    for speaker, hertz in PITCHES.items():
        for number in range(4):
            name = f"{speaker}{number}"
            tone = np.sin(np.arange(8000 + 1600 * number) * (2 * np.pi * hertz / 16_000)) * 0.1 * (number + 1)
            soundfile.write(tmp_path / f"{name}.wav", np.pad(tone, 3200), 16_000)
            lines.append({"id": name, "audio": f"{name}.wav", "text": f"text of {name}", "speaker": speaker, "language": "en"})
    path = tmp_path / "single.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def mixed(manifest: Path, name: str, **settings: Any) -> Path:
    """A folder of scenes."""
    mix([manifest], manifest.parent / name, MixSettings(**settings))
    return manifest.parent / name


def power(wave: np.ndarray, hertz: int) -> float:
    """The root mean square of a tone in a waveform."""
    turns = np.exp(-2j * np.pi * hertz / 16_000 * np.arange(len(wave)))
    return float(abs((wave * turns).mean()) * np.sqrt(2))


def test_a_speaker_is_heard_where_his_segments_say_so(manifest: Path) -> None:
    out = mixed(manifest, "out", scenes=4)
    for session, segments in read_segments(out / "ref.json").sessions().items():
        wave = codec.read(out / "audio" / f"{session}.flac")
        silent = {speaker: np.ones(len(wave), bool) for speaker in PITCHES}
        for segment in segments:
            start, end = (round(time * 16_000) for time in segment.span)
            silent[segment.speaker][start:end] = False
            level = 20 * np.log10(power(wave[start:end], PITCHES[segment.speaker]) / LOUDNESS)
            assert level == pytest.approx(segment.more["level_db"], abs=0.6)
            assert segment.words == f"text of {segment.more['utterance']}"
        for speaker, hertz in PITCHES.items():
            assert power(wave * silent[speaker], hertz) < 0.002


def test_the_manifest_has_the_words_in_the_order_of_their_starts(manifest: Path) -> None:
    out = mixed(manifest, "out", scenes=3, speakers=(3, 3), turns=7)
    utterances = read_manifest(out / "manifest.jsonl")
    assert [utterance.id for utterance in utterances] == [f"scene-0-{number:06}" for number in range(3)]
    for utterance in utterances:
        segments = utterance.extra["segments"]
        assert utterance.text == " ".join(segment["words"] for segment in segments)
        assert [segment["start_time"] for segment in segments] == sorted(segment["start_time"] for segment in segments)
        assert set(utterance.speaker.split(",")) == set(PITCHES)
        assert (len(segments), utterance.extra["num_speakers"], utterance.language) == (7, 3, "en")
        assert utterance.duration_s == pytest.approx(max(segment["end_time"] for segment in segments), abs=1e-4)


def test_a_scene_depends_on_its_seed_and_number_alone(manifest: Path) -> None:
    few, many, other = (
        mixed(manifest, name, scenes=count, seed=seed) for name, count, seed in (("a", 2, 5), ("b", 3, 5), ("c", 2, 6))
    )
    sounds = [[path.read_bytes() for path in sorted((out / "audio").iterdir())] for out in (few, many, other)]
    assert sounds[0] == sounds[1][:2]
    assert sounds[0] != sounds[2]
    assert (few / "manifest.jsonl").read_text() == "".join((many / "manifest.jsonl").read_text().splitlines(True)[:2])


def test_a_line_has_right_answers_and_the_values_of_prompts(manifest: Path) -> None:
    out = mixed(manifest, "out", scenes=3, speakers=(3, 3), turns=3, separator="|")
    for utterance in read_manifest(out / "manifest.jsonl"):
        words = [segment["words"] for segment in utterance.extra["segments"]]
        assert utterance.answers["all_talkers"] == utterance.answers["all_turns"] == " | ".join(words)
        assert utterance.answers["numbered_talker"] == words[int(utterance.extra["talker_number"]) - 1]
        assert utterance.extra["keyword"] in utterance.answers["keyword_talker"]
        assert utterance.extra["separator"] == "|"
    with pytest.raises(UserError, match="hold the separator 'text'"):
        mixed(manifest, "other", scenes=1, separator="text")


def test_utterances_longer_than_a_scene_are_left_out(manifest: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    long = [line["id"] for line in lines if line["speaker"] == "ann"] + ["bob1"]
    manifest.write_text("".join(json.dumps(line | {"duration_s": 9 if line["id"] in long else 1}) + "\n" for line in lines))
    assert mix([manifest], manifest.parent / "out", MixSettings(8, speakers=(2, 2), longest=4)) == (2, 5)
    ref = read_segments(manifest.parent / "out" / "ref.json").segments
    assert not {segment.more["utterance"] for segment in ref} & set(long)


def test_loud_scenes_are_made_quieter_and_say_so(manifest: Path) -> None:
    settings = MixSettings(scenes=3, level_db=30)
    scenes = list(mixed_scenes(read_voices([manifest]), settings))
    assert all(np.abs(scene.wave).max() <= 0.951 for scene in scenes)
    assert any(scene.about.get("quieter_by_db", 0) > 3 for scene in scenes)


def test_turns_beyond_the_longest_scene_are_left_out(manifest: Path) -> None:
    voices = read_voices([manifest])
    long, short = (list(mixed_scenes(voices, MixSettings(scenes=5, longest=seconds))) for seconds in (60, 3))
    for whole, cut in zip(long, short, strict=True):
        kept = [segment for segment in whole.segments if segment.span[1] <= 3]
        assert [segment.span for segment in cut.segments] == [segment.span for segment in whole.segments[: len(cut.segments)]]
        assert 0 < len(cut.segments) <= len(kept) < len(whole.segments)
        assert len(cut.wave) <= 48_000
        assert cut.about["num_speakers"] == len({segment.speaker for segment in cut.segments})
    with pytest.raises(UserError, match=r"longer than scenes may be \(0.1 s\)"):
        list(mixed_scenes(voices, MixSettings(scenes=1, longest=0.1)))


def test_what_cannot_be_mixed_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scenes with 4 speakers need as many in the manifests, which have 3"):
        mixed(manifest, "out", scenes=1, speakers=(2, 4))
    with pytest.raises(UserError, match="2 turns are too few for scenes with 3 speakers"):
        MixSettings(1, turns=2)
    with pytest.raises(UserError, match="3 to 2 speakers"):
        MixSettings(1, speakers=(3, 2))
    mixed(manifest, "out", scenes=1)
    with pytest.raises(UserError, match="not empty"):
        mixed(manifest, "out", scenes=1)
    manifest.write_text('{"id": "x", "audio": "ann0.wav", "text": "x"}\n')
    with pytest.raises(UserError, match="x has no speaker"):
        mixed(manifest, "new", scenes=1)
    soundfile.write(tmp_path / "none.wav", np.zeros(16_000), 16_000)
    manifest.write_text('{"id": "x", "audio": "none.wav", "text": "x", "speaker": "s"}\n')
    with pytest.raises(UserError, match=r"none.wav \(utterance x\): silent"):
        mixed(manifest, "other", scenes=1, speakers=(1, 1))


def test_the_command_imitates_other_segments(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(manifest.parent)
    Path("like.rttm").write_text("".join(f"SPEAKER m 1 {2 * turn} 1 <NA> <NA> s{turn % 2} <NA> <NA>\n" for turn in range(6)))
    arguments = ["data", "mix", "single.jsonl", "out", "--scenes", "2", "--speakers", "2", "2", "--like", "like.rttm"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "out: 2 scenes of 3 speakers: manifest.jsonl, ref.json, audio/\n"
    for segments in read_segments(Path("out/ref.json")).sessions().values():
        starts, ends = zip(*(segment.span for segment in segments), strict=True)
        assert [start - end for start, end in zip(starts[1:], ends, strict=False)] == pytest.approx([1.0] * 5, abs=1e-4)
    assert main(["data", "check", "out/manifest.jsonl"]) == 0
    assert main(["score", "out/ref.json", "out/ref.json"]) == 0
