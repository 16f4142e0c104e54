"""From a video file to what is sent of it: sampled, decoded and shrunk by the contract.

The client sends what this gives, and the proof of an export holds the same to mmaction2.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import decoders, sampling, wire
from .limits import DEFAULT, Limits
from .sampling import Plan
from .spec import Contract, Resize, SampleFrames
from .transforms import Frames


class SamplingError(ValueError):
    """The video has not what the model's sampling needs.

    message: the fact. hint: what its owner can do.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledFrames:
    """What is sent: the distinct frames, uint8 [F, H, W, C], and the int32 index into them.

    frame_numbers: of these frames in their video file; None of frames that came from memory.
    resize_ms: what resizing took of the time in which they were made.
    """

    frames: Frames
    frame_index: NDArray[np.int32]
    frame_numbers: NDArray[np.int32] | None = None
    resize_ms: float = 0.0


def plan(total_frames: int, fps: float | None, contract: Contract) -> Plan:
    """Which frames of a video the model needs.

    Args:
        total_frames: frames of the video.
        fps: its average frame rate, or None; only a model that samples at a fixed rate needs it.
        contract: the model's.

    Raises:
        SamplingError: no frames, or a frame rate that is needed and missing or no number.
    """
    sampler = contract.sampler
    rate = fps if contract.reads_fps else None
    if isinstance(sampler, SampleFrames) and sampler.target_fps and contract.reads_fps and not fps:
        raise SamplingError(
            f"the model samples at {sampler.target_fps:g} frames per second, and the frame rate of "
            "the video is unknown",
            hint="pass fps=, the frames per second of the video",
        )
    try:
        numbers = sampling.sample(total_frames, rate, sampler)
    except ValueError as exc:
        raise SamplingError(str(exc), hint="pass the length of the video in frames") from exc
    frame_numbers, frame_index = sampling.distinct(numbers)
    return Plan(frame_numbers=frame_numbers, frame_index=frame_index)


def sample_file(
    path: Path, contract: Contract, *, full_size: bool = False, limits: Limits = DEFAULT
) -> SampledFrames:
    """The frames of a video file that the model needs, as its decoder gives them, and shrunk.

    full_size: leaves them as they are decoded.

    Raises:
        VideoError: the file cannot be decoded; VideoLimitError: or is beyond the limits.
        SamplingError: the model takes no video file, or `plan` raises it.
        OpenCVMissingError: the model's decoder is OpenCV, which cannot be imported.
    """
    require_rgb(contract)
    resizer = _Resizer(None if full_size else contract.resize)
    chosen, frames = decoders.read_frames(
        path,
        contract.decoder,
        lambda info: plan(info.total_frames, info.fps, contract),
        resizer,
        limits,
    )
    return SampledFrames(
        frames=frames,
        frame_index=chosen.frame_index,
        frame_numbers=chosen.frame_numbers,
        resize_ms=resizer.spent_s * 1e3,
    )


def require_rgb(contract: Contract) -> None:
    """Raises SamplingError unless the frames of a video file are what the model takes."""
    if contract.takes_flow:
        raise SamplingError(
            f"the model takes optical flow, {contract.channels} channels; a video file has none",
            hint="compute it, and call classify_frames or classify_sampled of the Python client "
            f"with uint8 [F, H, W, {contract.channels}]",
        )


def shrunk(frames: Frames, frame_index: NDArray[np.int32], contract: Contract) -> SampledFrames:
    """Frames that were decoded elsewhere, as `sample_file` would have shrunk them."""
    resizer = _Resizer(contract.resize)
    return SampledFrames(
        frames=resizer(frames), frame_index=frame_index, resize_ms=resizer.spent_s * 1e3
    )


class _Resizer:
    """`wire.shrink`, and the seconds that its calls took."""

    def __init__(self, resize: Resize | None) -> None:
        self._resize = resize
        self.spent_s = 0.0

    def __call__(self, frames: Frames) -> Frames:
        started = time.perf_counter()
        small = wire.shrink(frames, self._resize)
        self.spent_s += time.perf_counter() - started
        return small
