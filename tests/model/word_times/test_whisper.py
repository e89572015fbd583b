"""Whisper as an aligner: a tiny random model for what it accepts, and the real tiny.en for what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtbi import text_units
from mtbi.audio import codec
from mtbi.corpus.align import align_manifest, open_aligner
from mtbi.corpus.aligner import Alignment, Clip
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.errors import UserError
from mtbi.model.word_times import whisper
from mtbi.model.word_times.whisper import WhisperAligner, alignment_heads

RATE = codec.SAMPLE_RATE


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Quiet noise with a loud stretch in its middle."""
    wave = np.random.default_rng(seed).normal(0, 0.01, int(seconds * RATE)).astype(np.float32)
    wave[len(wave) // 4 : -len(wave) // 4] *= 20
    return wave


@pytest.fixture(scope="module")
def aligner(tiny_whisper: Path) -> WhisperAligner:
    opened = open_aligner(str(tiny_whisper))
    assert isinstance(opened, WhisperAligner)
    return opened


@pytest.fixture(autouse=True)
def any_score(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds every transcript unlikely."""
    if "whisper_tiny_en" not in request.fixturenames:
        monkeypatch.setattr(whisper, "LOWEST_SCORE", -1000.0)


def test_every_unit_gets_times_in_order(aligner: WhisperAligner) -> None:
    texts = {"en": "Well, I don't know.", "zh": "今天我用 iPhone。", "th": "สวัสดีครับ", "": "no language given"}
    clips = [Clip(noise(3.1, n), text_units.units(text), language) for n, (language, text) in enumerate(texts.items())]
    for clip, alignment in zip(clips, aligner.align(clips), strict=True):
        assert alignment.spans is not None, alignment.reason
        assert len(alignment.spans) == len(clip.units)
        edges = [edge for span in alignment.spans for edge in span]
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= 3.12


def test_a_clip_is_aligned_the_same_alone_and_in_a_batch(aligner: WhisperAligner) -> None:
    lengths = [(1.2, "yes"), (1.9, "a longer transcript"), (0.7, "no"), (5.0, "of another length"), (1.5, "one two")]
    clips = [Clip(noise(seconds, n), text.split(), "en") for n, (seconds, text) in enumerate(lengths)]
    together = aligner.align(clips)
    for clip, alignment in zip(clips, together, strict=True):
        [alone] = aligner.align([clip])
        assert alone.spans == alignment.spans
        assert alone.score == pytest.approx(alignment.score, rel=1e-4)


@pytest.mark.parametrize(
    ("seconds", "text", "language", "reason"),
    [
        (2, "", "en", "no words"),
        (30.1, "too long", "en", "longer than Whisper's 30 seconds"),
        (0.1, "many words in a moment", "en", "too short for its words"),
        (20, "word " * 20, "en", "more tokens than Whisper's decoder reads"),
        (2, "goeie dei", "fy", "does not know the language 'fy'"),
    ],
)
def test_what_cannot_be_aligned_has_a_reason(
    aligner: WhisperAligner, seconds: float, text: str, language: str, reason: str
) -> None:
    bad, good = Clip(noise(seconds), text.split(), language), Clip(noise(1), ["yes"], "en")
    refused, aligned = aligner.align([bad, good])
    assert refused.spans is None
    assert reason in refused.reason
    assert aligned.spans is not None


def test_a_language_that_is_not_given_is_heard(aligner: WhisperAligner) -> None:
    clip = Clip(noise(2), ["yes"])
    scores = {code: aligner.align([Clip(clip.wave, clip.units, code)])[0].score for code in aligner.vocabulary.languages}
    [heard] = aligner.align([clip])
    assert heard.score in scores.values()
    assert len(set(scores.values())) == len(scores)  # so the score tells which language was chosen


def test_english_only_models_refuse_other_languages(tiny_english_whisper: Path) -> None:
    aligner = WhisperAligner(str(tiny_english_whisper))
    english, german = aligner.align([Clip(noise(1), ["yes"], "en-US"), Clip(noise(1), ["ja"], "de")])
    assert english.spans is not None
    assert "knows English alone" in german.reason


def test_heads_are_those_of_the_generation_configuration(aligner: WhisperAligner) -> None:
    model = aligner._model
    assert alignment_heads(model) == [(1, 0), (1, 1)]  # none are named: the upper half of two layers
    model.generation_config.alignment_heads = [[0, 1]]
    assert alignment_heads(model) == [[0, 1]]
    del model.generation_config.alignment_heads


def test_folders_without_a_whole_whisper_are_refused(tiny_whisper: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_whisper / "config.json").read_bytes())
    with pytest.raises(UserError, match="no Whisper model with tokenizer and preprocessor"):
        open_aligner(str(tmp_path))


def joined_digits(speech: Path, count: int) -> tuple[list[Clip], list[list[float]]]:
    """Strings of four recorded digits of one speaker, 0.3 s apart, and the seconds at which each recording begins."""
    folder = speech / "fsdd"
    recordings = [one for one in read_manifest(folder / "manifest.jsonl") if one.speaker == "fsdd-jackson"]
    rng = np.random.default_rng(0)
    clips: list[Clip] = []
    times: list[list[float]] = []
    for _ in range(count):
        parts: list[np.ndarray] = [np.zeros(RATE // 2, np.float32)]
        begins: list[float] = []
        chosen = [recordings[number] for number in rng.choice(len(recordings), 4, replace=False)]
        for one in chosen:
            begins.append(sum(map(len, parts)) / RATE)
            parts += [codec.read(folder / one.audio), np.zeros(3 * RATE // 10, np.float32)]
        clips.append(Clip(np.concatenate(parts), [one.text for one in chosen], "en"))
        times.append(begins)
    return clips, times


def starts(alignment: Alignment) -> list[float]:
    return [start for start, _ in alignment.spans or []]


def test_the_real_model_finds_words_and_refuses_other_transcripts(whisper_tiny_en: str, speech: Path) -> None:
    aligner = WhisperAligner(whisper_tiny_en)
    clips, times = joined_digits(speech, 4)
    found = aligner.align(clips)
    errors = [
        start - begin
        for own, wanted in zip(found, times, strict=True)
        for start, begin in zip(starts(own), wanted, strict=True)
    ]
    assert np.median(np.abs(errors)) < 0.15
    other = ["the", "committee", "will", "meet", "again", "next", "thursday", "afternoon"]
    [refused] = aligner.align([Clip(clips[0].wave, other, "en")])
    assert refused.spans is None
    assert "not what Whisper hears" in refused.reason


def test_the_real_model_aligns_a_manifest_and_transcribes(whisper_tiny_en: str, speech: Path, tmp_path: Path) -> None:
    folder = speech / "librispeech_train_clean_3spk"
    chosen = [one for one in read_manifest(folder / "manifest.jsonl") if one.duration_s < 5][:3]
    write_manifest(tmp_path / "m.jsonl", [Utterance(one.id, str(folder / one.audio), one.text.upper()) for one in chosen])
    aligner = open_aligner(whisper_tiny_en)
    assert align_manifest(tmp_path / "m.jsonl", tmp_path / "out.jsonl", aligner) == (3, 0)
    for utterance in read_manifest(tmp_path / "out.jsonl"):
        assert [word for word, _, _ in utterance.words or []] == utterance.text.split()
    heard = aligner.transcribe(codec.read(folder / chosen[0].audio))
    assert chosen[0].text.split()[0] in heard.lower()
