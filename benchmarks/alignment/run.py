"""How near word times are to the truth. `python benchmarks/alignment/run.py SPEECH MODEL… [--out FOLDER]`

SPEECH is the folder of small public recordings. A MODEL is a Whisper or CTC model, by name or folder. The word times of two
sets are known:

- `meetings`: AMI, distant speakers of meetings, with the word times of AMI's own forced alignment. A clip is one speaker's
  segment. Words during which somebody else speaks are counted apart.
- `digits`: single recorded digits of five speakers in strings of five, with pauses of 0 to 0.6 s between them. A word starts
  where its recording does.

An error is the distance of a start from the truth. `untrimmed_speech` has the same paths without the trimming of pauses. With
`--padded`, a Whisper model is also measured with every clip padded to 30 s, as in Whisper's own code. `transcripts` counts the
right transcripts that are refused, and those of other recordings that are accepted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from measuring import header, save  # noqa: E402

from mtbi import text_units  # noqa: E402
from mtbi.audio import codec  # noqa: E402
from mtbi.corpus import pauses  # noqa: E402
from mtbi.corpus.align import open_aligner  # noqa: E402
from mtbi.corpus.aligner import Aligner, Clip, Spans  # noqa: E402
from mtbi.corpus.manifest import read_manifest  # noqa: E402
from mtbi.corpus.text_style import sentence  # noqa: E402
from mtbi.model.word_times import whisper  # noqa: E402

RATE = codec.SAMPLE_RATE
MARGIN_SECONDS = 0.3  #: of sound beside a segment of a meeting, where nobody else speaks
DIGITS, STRINGS_A_SPEAKER = 5, 8
TRANSCRIPTS = ("librispeech_dev_clean_20spk", "vctk_5spk", "common_voice_en", "speechocean762_part")
TRANSCRIPTS_A_SET = 12


@dataclass(frozen=True)
class Timed:
    """A clip with the true starts of its words."""

    clip: Clip
    starts: list[float]  #: seconds
    overlapped: list[bool]  #: whether somebody else speaks during the word


def meetings(speech: Path) -> list[Timed]:
    """The segments of AMI, cut from 30 seconds of a meeting."""
    folder = speech / "ami_30s"
    found: list[Timed] = []
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        record = json.loads(line)
        segments = [segment for segment in record.get("segments", []) if segment.get("word_times")]
        wave = codec.read(folder / record["audio"]) if segments else np.zeros(0, np.float32)
        for segment in segments:
            others = [times[1:] for other in segments if other is not segment for times in other["word_times"]]
            found += [timed] if (timed := cut_segment(wave, segment, others)) else []
    return found


def cut_segment(wave: np.ndarray, segment: dict, others: list[list[float]]) -> Timed | None:
    """One segment, with a margin in which nobody else speaks. None where its words and its times differ in number."""
    units, times = text_units.units(segment["words"]), segment["word_times"]
    if len(units) != len(times):
        return None
    begin, end = times[0][1], times[-1][2]
    first = max([begin - MARGIN_SECONDS, 0, *(stop for _, stop in others if stop <= begin)])
    last = min([end + MARGIN_SECONDS, *(start for start, _ in others if start >= end)])
    clip = Clip(wave[int(first * RATE) : int(last * RATE)], units, "en")
    overlapped = [any(a < stop and b > start for a, b in others) for _, start, stop in times]
    return Timed(clip, [start - first for _, start, _ in times], overlapped)


def digits(speech: Path) -> list[Timed]:
    """Strings of recorded digits."""
    folder, rng = speech / "fsdd", np.random.default_rng(0)
    found: list[Timed] = []
    recordings = read_manifest(folder / "manifest.jsonl")
    for speaker in sorted({one.speaker for one in recordings}):
        own = [one for one in recordings if one.speaker == speaker]
        for _ in range(STRINGS_A_SPEAKER):
            parts, starts = [np.zeros(int(rng.uniform(0, 0.6) * RATE), np.float32)], []
            chosen = [own[number] for number in rng.choice(len(own), DIGITS, replace=False)]
            for one in chosen:
                starts.append(sum(map(len, parts)) / RATE)
                parts += [codec.read(folder / one.audio), np.zeros(int(rng.uniform(0, 0.6) * RATE), np.float32)]
            found.append(Timed(Clip(np.concatenate(parts), [one.text for one in chosen], "en"), starts, [False] * DIGITS))
    return found


def errors(aligner: Aligner, timed: list[Timed]) -> dict:
    """The errors of word starts, and the seconds an utterance."""
    aligner.align([one.clip for one in timed[:2]])  # the first call is slower
    began = time.process_time()
    with patch.object(whisper.pauses, "trim", lambda spans, wave: spans):
        found = aligner.align([one.clip for one in timed])
    seconds = time.process_time() - began
    pairs = [(one, alignment.spans) for one, alignment in zip(timed, found, strict=True) if alignment.spans]
    trimmed = [(one, pauses.trim(spans, one.clip.wave)) for one, spans in pairs]
    result = {
        "utterances": len(timed),
        "refused": len(timed) - len(pairs),
        "processor_seconds_an_utterance": round(seconds / len(timed), 3),
        "speech_seconds": round(sum(len(one.clip.wave) for one in timed) / RATE, 1),
        "speech": summary(differences(trimmed, overlapped=False)),
    }
    if any(any(one.overlapped) for one in timed):
        result["overlapped_speech"] = summary(differences(trimmed, overlapped=True))
    return result | {"untrimmed_speech": summary(differences(pairs, overlapped=False))}


def differences(pairs: list[tuple[Timed, Spans]], overlapped: bool) -> list[float]:
    """How much too late the words start, in seconds."""
    return [
        start - truth
        for one, spans in pairs
        for (start, _), truth, other in zip(spans, one.starts, one.overlapped, strict=True)
        if other == overlapped
    ]


def summary(values: list[float]) -> dict:
    """Median, 90th percentile, share above 200 ms, and bias of errors in seconds."""
    distances = np.abs(values)
    return {
        "words": len(values),
        "median_ms": round(1000 * float(np.median(distances))),
        "p90_ms": round(1000 * float(np.percentile(distances, 90))),
        "above_200_ms": round(float((distances > 0.2).mean()), 3),
        "median_signed_ms": round(1000 * float(np.median(values))),
    }


def transcripts(aligner: whisper.WhisperAligner, speech: Path) -> dict:
    """How often right transcripts are refused, and those of another recording of similar length accepted."""
    scores: dict[str, dict[str, list[float]]] = {}
    for name in TRANSCRIPTS:
        recordings = [one for one in read_manifest(speech / name / "manifest.jsonl") if one.text and one.duration_s < 10]
        chosen = np.random.default_rng(0).choice(len(recordings), TRANSCRIPTS_A_SET, replace=False)
        used = sorted((recordings[number] for number in chosen), key=lambda one: len(one.text))
        clips = [Clip(codec.read(speech / name / one.audio), text_units.units(sentence(one.text)), "en") for one in used]
        others = [replace(clip, units=other.units) for clip, other in zip(clips, clips[1:] + clips[:1], strict=True)]
        with patch.object(whisper, "LOWEST_SCORE", -np.inf):
            found = {"right": aligner.align(clips), "other": aligner.align(others)}
        scores[name] = {
            kind: [round(one.score, 2) for one in alignments if one.score is not None] for kind, alignments in found.items()
        }
    return {
        name: {
            "right_refused": sum(score < whisper.LOWEST_SCORE for score in own["right"]),
            "other_accepted": sum(score >= whisper.LOWEST_SCORE for score in own["other"]),
            "of": TRANSCRIPTS_A_SET,
            "right_scores": sorted(own["right"]),
            "other_scores": sorted(own["other"]),
        }
        for name, own in scores.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--padded", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = parser.parse_args()
    sets = {"meetings": meetings(options.speech), "digits": digits(options.speech)}
    results: dict = {}
    for model in options.models:
        aligner = open_aligner(model)
        own = results[Path(model).name] = {name: errors(aligner, timed) for name, timed in sets.items()}
        print(Path(model).name, json.dumps(own, indent=1), flush=True)
        if isinstance(aligner, whisper.WhisperAligner):
            if options.padded:
                with patch.object(whisper, "STEP_SECONDS", 30):
                    own["padded_to_30_s"] = {title: errors(aligner, timed) for title, timed in sets.items()}
            own["transcripts"] = transcripts(aligner, options.speech)
            print(json.dumps(own["transcripts"]), flush=True)
        if options.out:
            save({**header("torch", "transformers", "numpy"), "results": results}, options.out)


if __name__ == "__main__":
    main()
