"""The numbering of a video's frames, from its packets alone: which frame has which number, which of
them are keyframes, and what a frame may refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .limits import VideoError
from .video_file import REPAIR_HINT, DamagedError, Source

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

# A jump can't be checked against what it jumps over, so every packet must be known to be a frame.
# These formats store a presentation time with each packet and an index of keyframes: FFmpeg makes
# up the times of AVI, and finds its way in MPEG-TS by bisecting bytes. These codecs have no packets
# without a picture, as MPEG-4 and VP8 do.
_SEEKABLE_FORMATS = ("mov", "matroska")
_SEEKABLE_CODECS = ("h264", "hevc", "vp9", "av1")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What sampling needs to know. fps is the average frame rate; None where it is unknown."""

    total_frames: int
    fps: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packet:
    pts: int | None
    duration: int
    is_key: bool
    is_hidden: bool
    is_corrupt: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Index:
    """pts: presentation time of each frame, ascending. keys: numbers of the keyframes, ascending.
    reach: for each frame, the last number among those that are decoded up to it, which it may
    refer to. marked: numbers of the frames whose packets the container marks as damaged.

    A frame can be decoded from the last keyframe that is shown at or before it: what follows an
    open GOP's keyframe but is shown before it belongs to the GOP before.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    reach: NDArray[np.int64]
    marked: frozenset[int]
    seekable: bool

    def key_before(self, number: int) -> int:
        at = int(np.searchsorted(self.keys, number, side="right"))
        return int(self.keys[at - 1]) if at else 0

    def number_of(self, pts: int | None) -> int | None:
        if pts is None:
            return None
        at = int(np.searchsorted(self.pts, pts))
        return at if at < len(self.pts) and self.pts[at] == pts else None


def scan(file: Source) -> tuple[VideoInfo, Index | None]:
    """Length and frame rate, and the numbering of the frames; None where packets don't tell it."""
    with file.opened() as (container, stream):
        packets: list[_Packet] = []
        try:
            for packet in file.packets(container, stream):
                if packet.size:
                    file.budget.check_frames(len(packets) + 1)
                    packets.append(_noted(packet))
        except DamagedError as exc:
            raise VideoError(
                f"{file.path} cannot be read to its end ({exc})", hint=REPAIR_HINT
            ) from exc
        shown = sum(not packet.is_hidden for packet in packets)
        if not shown:
            raise VideoError(
                f"{file.path} has a video stream without a single frame", hint=REPAIR_HINT
            )
        _check_complete(file.path, stream, packets)
        fps = float(stream.average_rate) if stream.average_rate else None
        seekable = (
            container.format.name.split(",")[0] in _SEEKABLE_FORMATS
            and stream.codec.canonical_name in _SEEKABLE_CODECS
        )
    return VideoInfo(total_frames=shown, fps=fps), _index_of(packets, seekable=seekable)


def _noted(packet: Packet[VideoStream]) -> _Packet:
    return _Packet(
        pts=packet.pts,
        duration=packet.duration or 0,
        is_key=packet.is_keyframe,
        is_hidden=packet.is_discard,
        is_corrupt=packet.is_corrupt,
    )


def _check_complete(path: Path, stream: VideoStream, packets: Sequence[_Packet]) -> None:
    """Refuses a file that ends before what its header announces.

    Fewer frames than announced are no proof, since an edit list can leave some out; but then the
    duration is shorter too.
    """
    ends = [p.pts + p.duration for p in packets if p.pts is not None]
    if stream.frames <= len(packets) or not ends or not stream.duration:
        return
    typical = sorted(packet.duration for packet in packets)[len(packets) // 2]
    if max(ends) + typical < (stream.start_time or 0) + stream.duration:
        raise VideoError(
            f"{path} is cut short: its header announces {stream.frames} frames, and only "
            f"{len(packets)} can be read",
            hint=REPAIR_HINT,
        )


def _index_of(packets: Sequence[_Packet], *, seekable: bool) -> Index | None:
    times = [packet.pts for packet in packets if packet.pts is not None]
    if len(set(times)) < len(packets):
        return None
    # Frames before the first keyframe can't be decoded, and how many there are only decoding tells.
    if not packets[0].is_key or times[0] != min(times):
        return None
    shown = [(time, p) for time, p in zip(times, packets, strict=True) if not p.is_hidden]
    decoded = np.array([time for time, _ in shown], np.int64)
    pts = np.sort(decoded)
    numbers = np.searchsorted(pts, decoded)
    reach = np.empty_like(numbers)
    reach[numbers] = np.maximum.accumulate(numbers)
    keys = sorted(
        number for number, (_, p) in zip(numbers.tolist(), shown, strict=True) if p.is_key
    )
    return Index(
        pts=pts,
        keys=np.array(keys, np.int64),
        reach=reach,
        marked=frozenset(
            number for number, (_, p) in zip(numbers.tolist(), shown, strict=True) if p.is_corrupt
        ),
        seekable=seekable,
    )
