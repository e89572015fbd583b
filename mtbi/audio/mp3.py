"""Count the frames of MP3 files.

Without a Xing header, decoders estimate the length of a variable bit rate from the first frames. libsndfile stops at that
estimate, so up to half of a recording is lost. `recount` puts a header with the right number of frames in front.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mtbi.errors import UserError

BIT_RATES = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAMPLE_RATES = (44_100, 48_000, 32_000)
FRAMES_FLAG = 1
LARGEST_BYTES_PER_SECOND = 40_000  # 320 kbit/s
LARGEST_TAG_BYTES = 2**24  # pictures
MARK = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|ID3")  # of layer 3
LARGEST_TRIES = 2**16  # random bytes hold some 20 marks a megabyte
STRAY_FRAMES = 10  # that a picture or a tag may hold by chance


@dataclass(frozen=True)
class Frame:
    """One frame of MPEG audio, layer 3."""

    header: bytes  #: 4 bytes
    length: int  #: bytes
    samples: int  #: a channel
    tag_at: int  #: position at which a Xing header begins

    @classmethod
    def parse(cls, header: bytes) -> Frame | None:
        """The frame that these 4 bytes begin; None for anything else, and for the free format."""
        if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
            return None
        version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3  # version 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
        rate_index, rate = header[2] >> 4, header[2] >> 2 & 3
        if version == 1 or layer != 1 or rate_index in (0, 15) or rate == 3:
            return None
        first = version == 3
        hertz = SAMPLE_RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
        bits = BIT_RATES[1 if first else 2][rate_index] * 1000
        length = (144 if first else 72) * bits // hertz + (header[2] >> 1 & 1)
        mono = header[3] >> 6 == 3
        side = (17 if mono else 32) if first else (9 if mono else 17)
        return cls(bytes(header[:4]), length, 1152 if first else 576, 4 + side)

    def like(self, other: Frame) -> bool:
        """Whether both may belong to one stream: the same version, layer and sampling rate."""
        mask = (0xFE, 0x0C)
        return all(self.header[at] & bits == other.header[at] & bits for at, bits in zip((1, 2), mask, strict=True))


def _frames(data: bytes) -> list[tuple[int, Frame]]:
    """All frames with their positions. Data between frames, such as ID3 tags, are skipped."""
    frames: list[tuple[int, Frame]] = []
    position = tries = 0
    while position + 4 <= len(data):
        if data[position : position + 3] == b"ID3" and position + 10 <= len(data):
            seven_bits = data[position + 6 : position + 10]
            position += 10 + sum((byte & 0x7F) << 7 * (3 - at) for at, byte in enumerate(seven_bits))
            continue
        frame = Frame.parse(data[position : position + 4])
        after = position + frame.length if frame else 0
        known = frames and frame and frames[-1][1].like(frame) and frames[-1][0] + frames[-1][1].length == position
        if frame and after <= len(data) and (known or _follows(data, after, frame)):
            frames.append((position, frame))
            position = after
        else:
            tries += 1
            if tries > LARGEST_TRIES:
                raise UserError("truncated or damaged: too little of the file is sound")
            mark = MARK.search(data, position + 1)
            position = mark.start() if mark else len(data)
    return frames


def _follows(data: bytes, position: int, frame: Frame) -> bool:
    """Whether another frame of the stream begins at `position`, or the data end. Bytes inside a frame may look like one."""
    following = Frame.parse(data[position : position + 4])
    return position == len(data) or bool(following and following.like(frame))


def _tag(data: bytes, position: int, frame: Frame) -> int | None:
    """The number of frames in a Xing, Info or VBRI header, -1 where it gives none. None for a frame of sound."""
    body = data[position : position + frame.length]
    if body[frame.tag_at : frame.tag_at + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(body[frame.tag_at + 4 : frame.tag_at + 8], "big")
        return int.from_bytes(body[frame.tag_at + 8 : frame.tag_at + 12], "big") if flags & FRAMES_FLAG else -1
    return int.from_bytes(body[50:54], "big") if body[36:40] == b"VBRI" else None


def _audible(data: bytes, frames: list[tuple[int, Frame]]) -> bytes:
    """The bytes of the frames, behind a header with their number."""
    first = frames[0][1].header
    # The longest frame of the stream, without a checksum, has space for the header.
    header = bytes([first[0], first[1] | 1, first[2] & 0x0F | 0xE0, first[3]])
    front = Frame.parse(header)
    assert front is not None
    tag = b"Info" + FRAMES_FLAG.to_bytes(4, "big") + len(frames).to_bytes(4, "big")
    lead = (header + bytes(front.tag_at - 4) + tag).ljust(front.length, b"\0")
    return lead + b"".join(data[at : at + frame.length] for at, frame in frames)


def recount(data: bytes, believed_samples: int) -> bytes | None:
    """The file behind a header with the right number of frames. None where the decoder knows the length already.

    `believed_samples` is the decoder's estimate of the length. Raises UserError for a file with fewer frames than its header
    announces, and for several recordings in one file whose sampling rates differ.
    """
    frames = _frames(data)
    if not frames:
        return None
    tags = [_tag(data, position, frame) for position, frame in frames]
    sound = [entry for entry, tag in zip(frames, tags, strict=True) if tag is None]
    first = frames[0][1]
    if sum(not frame.like(first) for _, frame in sound) > STRAY_FRAMES:
        raise UserError("several recordings: the sampling rate changes within the file; convert it, for example with ffmpeg")
    sound = [(position, frame) for position, frame in sound if frame.like(first)]
    announced = (tags[0] or 0) if len(sound) == len(frames) - 1 else 0
    if len(sound) < 0.99 * announced - 1:
        raise UserError(f"truncated: {len(sound)} frames of the {announced} that the MP3 header announces")
    # Some encoders count the header's own frame.
    right = announced >= len(sound) - 1 if announced > 0 else believed_samples == len(sound) * first.samples
    return _audible(data, sound) if sound and not right else None
