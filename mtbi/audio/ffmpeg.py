"""Audio formats that libsndfile cannot read, such as AAC, WebM and WMA: their names, and decoding by ffmpeg."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

from mtbi.audio import members
from mtbi.errors import UserError

#: Marks near the start of a file: position, bytes, name of the format.
SIGNATURES = (
    (4, b"ftyp", "MP4 or M4A"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (WMA)"),
    (0, b"#!AMR", "AMR"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"ADIF", "AAC"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "True Audio"),
    (0, b"ajkg", "Shorten"),
    (0, b"DSD ", "DSD"),
    (0, b"FRM8", "DSD"),
    (0, b".RMF", "RealAudio"),
    (0, b"FLV\x01", "Flash video"),
    (8, b"AVI ", "AVI"),
    (28, b"Speex   ", "Speex"),
    (28, b"\x7fFLAC", "FLAC in Ogg"),  # libsndfile reads some of them
    (0, b"NIST_1A", "SPHERE compressed by shorten"),  # libsndfile reads the others
)
# fmt: off
#: Endings of sound and video that libsndfile does not read.
ENDINGS = frozenset({
    ".3g2", ".3ga", ".3gp", ".3gpp", ".aac", ".aa3", ".ac3", ".act", ".adts", ".alac", ".amr", ".ape", ".asf", ".avi",
    ".awb", ".cda", ".dff", ".dsf", ".dss", ".dts", ".dvf", ".eac3", ".ec3", ".f4a", ".flv", ".g722", ".g729", ".gsm",
    ".m2ts", ".m4a", ".m4b", ".m4p", ".m4r", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".mpeg", ".mpg", ".mts",
    ".ofr", ".ogm", ".ogv", ".oma", ".omg", ".opd", ".pcm", ".qcp", ".qt", ".ra", ".ram", ".raw", ".rm", ".rmvb",
    ".shn", ".silk", ".slk", ".spx", ".tak", ".ts", ".tta", ".vob", ".vox", ".weba", ".webm", ".wma", ".wmv", ".wv",
})
# fmt: on
#: The demuxers that may run. Playlists and other formats that read further files are not among them.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,amr,amrnb,amrwb,aac,wv,ape,tta,shn,tak,mpc,mpc8,dsf,iff,rm,flv,avi,ogg,nistsphere,"
    "ac3,eac3,dts,mpegts,mpeg,g722,qcp,oma,gsm,wav,mp3,caf"
)
#: Formats with an index of times, in which ffmpeg finds a time. Others are decoded from their beginning.
INDEXED = ("MP4 or M4A", "WebM or Matroska")
LEAD_SECONDS = 1  # decoded before a segment, because the first frames after a jump lack what comes before them
CUT_MARKS = ("partial file", "truncated", "ended prematurely", "invalid data found", "error reading")
HEADERLESS = ("RAW", "PCM")
TIMEOUT_SECONDS = 600
LONGEST_SECONDS = 24 * 3600


def name(start: bytes, path: Path | None) -> str | None:
    """The format of a file that libsndfile refuses, by its first bytes or else its ending. None for an unknown format."""
    by_content = next((known for at, mark, known in SIGNATURES if start[at : at + len(mark)] == mark), None)
    ending = path.suffix.lower() if path else ""
    return by_content or (f"{ending[1:].upper()}" if ending in ENDINGS else None)


def _address(path: Path) -> str:
    """The path as ffmpeg reads it: a file, or bytes of an archive."""
    span = members.span_of(path)
    return f"subfile,,start,{span[1]},end,{span[1] + span[2]},,:file:{span[0]}" if span else f"file:{path}"


def start_before(start_s: float, kind: str) -> float:
    """The time at which decoding begins for a segment from `start_s` on: whole seconds, so that it falls on a sample."""
    return float(max(0, math.floor(start_s) - LEAD_SECONDS)) if kind in INDEXED else 0.0


def to_wav(path: Path, kind: str, max_seconds: float = math.inf, start_s: float = 0.0) -> bytes:
    """The first audio stream of a file from `start_s` on, decoded by ffmpeg, as the bytes of a WAV file of float samples.

    It ends a little after `max_seconds`. On M4A and Matroska a start gives the same samples as decoding from the beginning, on
    WebM with Opus they were 8 ms early. Raises UserError where ffmpeg is not installed, fails, or reports a truncated file.
    """
    if kind in HEADERLESS:
        raise UserError(
            f"no header: a file .{kind.lower()} does not say its rate and format; if it is 16 bit at 16 kHz, convert it: "
            f"sox -t raw -r 16000 -e signed -b 16 -c 1 {path.name} {path.stem}.flac"
        )
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError(
            f"needs ffmpeg: {kind} is not among the formats that libsndfile reads; install ffmpeg, "
            f"or convert the file: ffmpeg -i {path.name} {path.stem}.flac"
        )
    seconds = min(max_seconds + 1, LONGEST_SECONDS)
    limits = ["-nostdin", "-hide_banner", "-loglevel", "warning", "-xerror", "-protocol_whitelist", "file,pipe,subfile"]
    jump = ["-ss", f"{start_s:.3f}"] if start_s else []
    source = [*jump, "-format_whitelist", DEMUXERS, "-i", _address(path), "-map", "0:a:0", "-t", f"{seconds:.3f}"]
    target = ["-map_metadata", "-1", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    try:
        done = subprocess.run([program, *limits, *source, *target], capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"not readable as audio: ffmpeg did not decode this {kind} in {TIMEOUT_SECONDS} s") from error
    messages = done.stderr.decode(errors="replace").strip().splitlines()
    cut = [line for line in messages if any(mark in line.lower() for mark in CUT_MARKS)]
    if cut:
        raise UserError(f"truncated or damaged: ffmpeg reports for this {kind}: {cut[0]}")
    if done.returncode != 0:
        raise UserError(f"not readable as audio: ffmpeg cannot decode this {kind}: {messages[-1] if messages else 'no reason'}")
    return done.stdout
