"""What a video file may cost before it is refused, and the errors of reading one.

Files come from strangers. 89 bytes can declare pictures that take gigabytes, 11 kB an index that
takes half a minute to build; a playlist opens other files, and a pipe never ends. `Limits` bounds
each of these, and a `Budget` keeps the account of one file while it is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")

Limit = Literal["file_bytes", "pixels", "frames", "seconds", "memory", "formats", "regular_files"]

FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg"),
    *("h264", "hevc", "m4v", "mpegvideo", "obu", "ivf"),
)
"""FFmpeg's names of what holds video, and nothing that names other files: MP4, 3GP and MOV;
Matroska and WebM; AVI; MPEG-TS and -PS; FLV; WMV; Ogg; and bare streams. Not among them: playlists
and scripts (hls, dash, concat, sdp), pictures and animations (image2, gif, apng), text art."""


class VideoError(ValueError):
    """The file is no video, or frames that are needed cannot be decoded from it.

    message: the fact. hint: what its owner can do.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class VideoLimitError(VideoError):
    """The file would cost more than is allowed. limit: the field of `Limits` that says so."""

    def __init__(self, message: str, *, limit: Limit, hint: str = "") -> None:
        super().__init__(
            message, hint=hint or f"to allow more: {limit} of Limits, {_option(limit)}"
        )
        self.limit = limit


def _option(limit: Limit) -> str:
    """Of action-client and action-bench."""
    return f"--max-{limit.replace('_', '-')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one video file may cost. What is above is a VideoLimitError, before the harm is done.

    file_bytes: size of the file.
    pixels: of one picture, width times height; the default is 8K.
    frames: of the whole file, needed or not; the default is nine hours at 30 a second.
    seconds: of the clock, for reading and decoding the file, its frames' resizing included.
    memory: bytes of the needed frames together, after resizing; gRPC can send no more at once.
    formats: FFmpeg's names of the container formats that are opened.
    regular_files: whether a pipe, a socket or a device is refused. Where it is not, what it gives
        is first copied into a temporary file, within `file_bytes` and `seconds`.
    """

    file_bytes: int = 16 * 2**30
    pixels: int = 8192 * 4320
    frames: int = 1_000_000
    seconds: float = 300.0
    memory: int = 2 * 2**30
    formats: tuple[str, ...] = FORMATS
    regular_files: bool = True

    @property
    def coded_pixels(self) -> int:
        """Bound for FFmpeg, which counts whole blocks of up to 64 x 64: of sides up to 16384."""
        return self.pixels + 2 * 64 * 16384

    def __post_init__(self) -> None:
        for name in ("file_bytes", "pixels", "frames", "seconds", "memory"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"the limit {name} is a number above 0, and not {value}")
        if not self.formats or any(not name or "," in name for name in self.formats):
            raise ValueError("the limit formats is a tuple of FFmpeg's names of formats")


DEFAULT = Limits()


class Budget:
    """What one file has cost so far, held to its limits."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self._end = time.monotonic() + limits.seconds

    def seconds_left(self) -> float:
        """Raises VideoLimitError where there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise VideoLimitError(
                f"{self.path} takes longer than {self.limits.seconds:g} s to read and decode",
                limit="seconds",
            )
        return left

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The items, while there is time."""
        for item in items:
            self.seconds_left()
            yield item

    def check_bytes(self, size: int) -> None:
        if size > self.limits.file_bytes:
            raise VideoLimitError(
                f"{self.path} has {size} bytes or more, and {self.limits.file_bytes} are allowed",
                limit="file_bytes",
            )

    def check_pixels(self, width: int, height: int) -> None:
        if width * height > self.limits.pixels:
            raise VideoLimitError(
                f"{self.path} has pictures of {width}x{height} pixels, and "
                f"{self.limits.pixels} pixels are allowed",
                limit="pixels",
            )

    def check_frames(self, count: int) -> None:
        if count > self.limits.frames:
            raise VideoLimitError(
                f"{self.path} has or declares {count} frames or more, and "
                f"{self.limits.frames} are allowed",
                limit="frames",
            )

    def check_memory(self, size: int) -> None:
        if size > self.limits.memory:
            raise VideoLimitError(
                f"the frames that are needed of {self.path} take {size} bytes, and "
                f"{self.limits.memory} are allowed",
                limit="memory",
            )
