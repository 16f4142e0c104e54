"""The frames of a video file as the decoder gives them that the model was trained on.

decord and PyAV: `video` finds the frames, which both number in the order in which they are shown.
OpenCV: only OpenCV itself converts colours as it does (`opencv_reader`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import opencv_reader, video
from .limits import DEFAULT, Limits
from .sampling import Plan
from .spec import Decoder
from .transforms import Frames
from .video import Choose, Convert, VideoError, VideoInfo
from .video_file import Source, source

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def require(decoder: Decoder) -> None:
    """Raises OpenCVMissingError where the decoder is OpenCV, which cannot be imported."""
    if decoder == "opencv":
        opencv_reader.require_opencv()


def read_frames(
    path: Path,
    decoder: Decoder,
    choose: Choose,
    convert: Convert | None = None,
    limits: Limits = DEFAULT,
) -> tuple[Plan, Frames]:
    """As `video.read_frames`, by the decoder of the contract.

    Raises:
        VideoError: what `video.read_frames` raises, and a file whose frames this decoder does not
            tell or does not give twice alike; VideoLimitError: as there.
        OpenCVMissingError: the decoder is OpenCV, which cannot be imported.
    """
    with source(path, limits) as file:
        match decoder:
            case "decord":
                return video.read_source(file, choose, convert)
            case "pyav":
                return _read_pyav(file, choose, convert)
            case "opencv":
                return opencv_reader.read_source(file, choose, convert)


def _read_pyav(file: Source, choose: Choose, convert: Convert | None) -> tuple[Plan, Frames]:
    """mmaction2's PyAVInit and PyAVDecode with mode="accurate" (datasets/transforms/loading.py).

    The length is what the container announces. Of frames that are announced and not there, it goes
    round: `imgs[i % len(imgs)]`. Pictures are not turned upright.
    """
    header = video.examine(file)
    if not header.announced:
        raise VideoError(
            f"{file.path} does not announce how many frames it has, which the model's decoder "
            "(PyAV in mmaction2) takes for its length",
            hint="put its streams into an MP4: ffmpeg -i IN -c copy OUT.mp4",
        )
    if not header.is_first:
        raise VideoError(
            f"{file.path} has several video streams, of which the model's decoder (PyAV in "
            "mmaction2) takes the first and FFmpeg another",
            hint="keep one: ffmpeg -i IN -map 0:v:0 -c copy OUT.mp4",
        )
    asked: Plan | None = None
    shown = 0

    def choose_shown(info: VideoInfo) -> Plan:
        nonlocal asked, shown
        asked = choose(VideoInfo(total_frames=header.announced, fps=info.fps))
        shown = info.total_frames
        numbers = np.unique(asked.frame_numbers % shown).astype(np.int32)
        return Plan(frame_numbers=numbers, frame_index=asked.frame_index)

    there, frames = video.read_source(file, choose_shown, convert, _PyavRgb(file.path))
    assert asked is not None
    if len(asked.frame_numbers) and asked.frame_numbers[-1] >= shown:
        frames = frames[np.searchsorted(there.frame_numbers, asked.frame_numbers % shown)]
    return asked, frames


class _PyavRgb:
    """PyAV's own conversion, whose pixels are those of the PyAV that is installed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: VideoFrame) -> Frames:
        size = (frame.width, frame.height)
        self._size = self._size or size
        if size != self._size:
            raise VideoError(
                f"{self._path} changes from {self._size[0]}x{self._size[1]} to "
                f"{size[0]}x{size[1]}, and the model's decoder (PyAV in mmaction2) keeps both",
                hint="give it one size: ffmpeg -i IN -c:v libx264 OUT.mp4",
            )
        pixels: Any = frame.to_rgb().to_ndarray()
        return np.asarray(pixels, np.uint8)
