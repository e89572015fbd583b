"""Scenes, recordings with several speakers: formats of segments, and scores of what a system found."""

from mtbi.scenes.diarization import DiarizationErrors, diarization_errors
from mtbi.scenes.read import read_segments
from mtbi.scenes.score import SceneReport, ScoreSettings, score_files
from mtbi.scenes.segments import SegmentFile, SpeakerSegment
from mtbi.scenes.write import write_segments

__all__ = [
    "DiarizationErrors",
    "SceneReport",
    "ScoreSettings",
    "SegmentFile",
    "SpeakerSegment",
    "diarization_errors",
    "read_segments",
    "score_files",
    "write_segments",
]
