"""The videos that are measured: a real one, re-encoded in three sizes, 280 frames in 10 s."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoFrame

SIZES = {"340x256": (340, 256), "720p": (1280, 720), "1080p": (1920, 1080)}
FRAMES = 280
FPS = 28


def make(source: Path, name: str, path: Path) -> Path:
    """Writes H.264 of the size called `name`: the middle of `source`, there and back again."""
    import av

    width, height = SIZES[name]
    with av.open(str(path), "w") as container:
        # quick to write; how it was searched for changes little in what decoding takes
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, frame in enumerate(_looped(source)):
            small = _middle(frame, width / height).reformat(width, height, format="yuv420p")
            small.pts, small.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(small))
        container.mux(stream.encode(None))
    return path


def _looped(source: Path) -> Iterator[VideoFrame]:
    """FRAMES frames; forwards, then backwards, and so on, without a cut."""
    import av

    with av.open(str(source)) as container:
        frames = [frame for _, frame in zip(range(FRAMES), container.decode(video=0), strict=False)]
    there_and_back = [*frames, *frames[-2:0:-1]]
    for number in range(FRAMES):
        yield there_and_back[number % len(there_and_back)]


def _middle(frame: VideoFrame, aspect: float) -> VideoFrame:
    """Its middle columns in this aspect ratio; no pixel is stretched."""
    import av

    width = min(frame.width, int(frame.height * aspect) // 2 * 2)
    if width == frame.width:
        return frame
    left = (frame.width - width) // 2
    pixels = frame.to_ndarray(format="rgb24")[:, left : left + width]
    return av.VideoFrame.from_ndarray(pixels.copy(), format="rgb24")
