"""The frames of a video file as mmcv's VideoReader gets them from OpenCV, which mmaction2 decodes
with under OpenCVInit and OpenCVDecode.

OpenCV converts colours as no other library does (BT.709 by the file's mark, chroma of odd heights
and interlaced pictures in its own way), so the pixels are OpenCV's own. It finds a frame by its
time, for which it takes the frame rate to be constant:

1. Where the times of all frames say that this is right, decoding in order gives the same frames,
   many times as fast.
2. Elsewhere (a variable frame rate, MPEG-TS, raw streams) each frame is sought as mmcv does it, in
   mmcv's order, because what a seek finds depends on it.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import video
from .sampling import Plan
from .transforms import Frames, OpenCVMissingError
from .video import Choose, Convert, Header, VideoError, VideoInfo, collect_frames
from .video_file import Source

# mmcv/video/io.py, VideoReader
_CACHED_FRAMES = 10
# mmaction2 steps back from frames that OpenCV counts and cannot give, with a seek for each step.
_STEPS_BACK = 16


def read_source(
    file: Source, choose: Choose, convert: Convert | None = None
) -> tuple[Plan, Frames]:
    """As `video.read_source`; the length is what OpenCV counts.

    Raises:
        VideoError: what `video.read_source` raises, frames that OpenCV counts and does not give, or
            pixels that it does not give twice alike.
        OpenCVMissingError: cv2 cannot be imported.
    """
    cv2 = require_opencv()
    # Also keeps from OpenCV, which knows no limits, what is no video or costs too much.
    header = video.examine(file)
    if header.bits > 8:
        raise VideoError(
            f"{file.path} has {header.bits} bits a sample, of which the model's decoder (OpenCV) "
            "leaves rows of a picture to what was in memory before",
            hint="convert it: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4",
        )
    capture = _opened(cv2, file)
    total, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    if total < 1:
        raise VideoError(
            f"OpenCV, which decodes for this model, counts no frame in {file.path}",
            hint="put its streams into an MP4: ffmpeg -i IN -c copy OUT.mp4",
        )
    plan = choose(VideoInfo(total_frames=total, fps=fps or None))
    _check_whole(file, plan)
    if _seeks_land(header, total, fps):
        with suppress(_EndedError):
            return plan, _collected(_in_order(capture, plan.frame_numbers), file, plan, convert)
    visits = _Visits(cv2, _opened(cv2, file), total, file.path)
    return plan, _collected(visits.all(plan), file, plan, convert)


def require_opencv() -> Any:
    """cv2. Raises OpenCVMissingError where it cannot be imported."""
    try:
        return importlib.import_module("cv2")
    except ImportError as exc:
        raise OpenCVMissingError(
            "the model was trained on frames that OpenCV decodes, and cv2 cannot be imported; "
            "pip install opencv-python-headless"
        ) from exc


def _opened(cv2: Any, file: Source) -> Any:
    # "file:", or else a colon in a name ends a protocol.
    capture = cv2.VideoCapture(f"file:{file.name}", cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise VideoError(
            f"OpenCV, which decodes for this model, cannot open {file.path}",
            hint="convert it: ffmpeg -i IN -c:v libx264 OUT.mp4",
        )
    return capture


def _check_whole(file: Source, plan: Plan) -> None:
    """Raises VideoError where a needed frame is damaged, of which OpenCV says nothing."""

    def same(info: VideoInfo) -> Plan:
        numbers = np.unique(np.minimum(plan.frame_numbers, info.total_frames - 1))
        return Plan(frame_numbers=numbers.astype(np.int32), frame_index=plan.frame_index)

    nothing = np.zeros((1, 1, 3), np.uint8)
    video.read_source(file, same, to_rgb=lambda frame: nothing)


class _EndedError(Exception):
    """OpenCV gives fewer frames than it counts."""


def _collected(
    pictures: Iterator[tuple[int, Frames]], file: Source, plan: Plan, convert: Convert | None
) -> Frames:
    rgb = ((row, np.ascontiguousarray(bgr[:, :, ::-1])) for row, bgr in pictures)
    timed = file.budget.timed(rgb)
    return collect_frames(timed, len(plan.frame_numbers), convert, file.budget)


def _seeks_land(header: Header, total: int, fps: float) -> bool:
    """Whether frame n is shown at n / fps, and so is where OpenCV looks for it."""
    if header.seconds is None or len(header.seconds) != total or not fps > 0:
        return False
    off = np.abs(header.seconds * fps - np.arange(total))
    # OpenCV rounds to the nearest number
    return bool(off.max() < 0.4)


def _in_order(capture: Any, numbers: NDArray[np.int32]) -> Iterator[tuple[int, Frames]]:
    """(row of the plan, BGR picture) of each number; _EndedError where OpenCV has no more."""
    position = 0
    for row, number in enumerate(numbers.tolist()):
        while position < number and capture.grab():
            position += 1
        found, picture = capture.read()
        if not found:
            raise _EndedError
        position += 1
        yield row, picture


class _Visits:
    """mmcv's VideoReader, with its cache and its seeks, as OpenCVDecode asks it."""

    def __init__(self, cv2: Any, capture: Any, total: int, path: Path) -> None:
        self._at = cv2.CAP_PROP_POS_FRAMES
        self._capture, self._total, self._path = capture, total, path
        self._cache: OrderedDict[int, Frames] = OrderedDict()
        self._position = 0

    def all(self, plan: Plan) -> Iterator[tuple[int, Frames]]:
        """(row of the plan, BGR picture) of each frame, when it is first asked for."""
        seen: set[int] = set()
        for row in plan.frame_index.tolist():
            picture = self._or_before(int(plan.frame_numbers[row]))
            if row not in seen:
                seen.add(row)
                yield row, picture

    def _or_before(self, number: int) -> Frames:
        for step in range(_STEPS_BACK):
            # mmcv counts negative numbers from the end
            picture = self._frame((number - step) % self._total)
            if picture is not None:
                return picture
        raise VideoError(
            f"OpenCV, which decodes for this model, counts {self._total} frames in {self._path} "
            f"and gives none from {max(0, number - _STEPS_BACK + 1)} to {number}",
            hint="give it a constant frame rate: ffmpeg -i IN -r 25 -c:v libx264 OUT.mp4",
        )

    def _frame(self, number: int) -> Frames | None:
        cached = self._cache.get(number)
        if cached is not None:
            self._position = number + 1
            return cached
        if number != self._position or self._real_position() != number:
            self._seek(number)
        found, picture = self._capture.read()
        if not found:
            return None
        if len(self._cache) >= _CACHED_FRAMES:
            self._cache.popitem(last=False)
        self._cache[number] = picture
        self._position = number + 1
        frame: Frames = picture
        return frame

    def _seek(self, number: int) -> None:
        self._capture.set(self._at, number)
        for _ in range(number - self._real_position()):
            self._capture.read()
        self._position = number

    def _real_position(self) -> int:
        at: float = self._capture.get(self._at)
        return round(at)
