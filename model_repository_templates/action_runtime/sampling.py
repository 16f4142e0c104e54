"""Which frames of a video the clips take, as mmaction2 1.2.0 decides it with test_mode=True.

The reference is mmaction/datasets/transforms/loading.py. What must not change here is its order of
rounding: starts of clips stay float64 until the frame numbers are within the video, and only then
become int32, which truncates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .spec import DenseSampleFrames, SampleFrames, Sampler, UniformSample

Indices = NDArray[np.int32]
_Numbers = NDArray[Any]

_MOST_FRAMES = 2**31 - 1  # as far as int32 counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Which frames of a video a model needs, and where each sampled position finds its frame.

    frame_numbers: int32, ascending, each frame once; 0 is the first frame of the video.
    frame_index: int32 [positions of the contract]; row of `frame_numbers` for each position.
    """

    frame_numbers: NDArray[np.int32]
    frame_index: NDArray[np.int32]


def sample(total_frames: int, fps: float | None, sampler: Sampler) -> Indices:
    """Frame number of each sampled position, int32 [total_clips * clip_len], clip-major.

    Args:
        total_frames: frames of the video; the numbers lie in [0, total_frames).
        fps: average frame rate of the video. Only SampleFrames with a target_fps looks at it;
            None or 0 (unknown) leaves the intervals as they are, as in mmaction2.
        sampler: how to sample.

    Raises:
        ValueError: no frames, an impossible frame rate, or the one combination on which mmaction2
            divides by zero: twice_sample of a single clip longer than one frame.
    """
    if total_frames < 1:
        raise ValueError(f"a video needs at least one frame, got total_frames={total_frames}")
    if total_frames > _MOST_FRAMES:
        raise ValueError(f"a video has {_MOST_FRAMES} frames at most, got {total_frames}")
    match sampler:
        case SampleFrames():
            return _as_indices(_sample_frames(total_frames, fps, sampler))
        case DenseSampleFrames():
            return _as_indices(_dense_sample_frames(total_frames, sampler))
        case UniformSample():
            return _as_indices(_uniform_sample(total_frames, sampler))


def distinct(indices: _Numbers) -> tuple[Indices, Indices]:
    """The frames to decode and send, and where each sampled position finds its frame.

    Returns:
        frame_numbers, ascending and each once; and frame_index, one for each position, so that
        `frame_numbers[frame_index]` equals `indices`.
    """
    frame_numbers, frame_index = np.unique(indices, return_inverse=True)
    return _as_indices(frame_numbers), _as_indices(frame_index)


def _as_indices(numbers: _Numbers) -> Indices:
    return numbers.astype(np.int32).ravel()


def _sample_frames(total: int, fps: float | None, spec: SampleFrames) -> _Numbers:
    span = _clip_span(fps, spec)
    steps: _Numbers
    if spec.target_fps is not None:
        steps = np.linspace(0, span - 1, spec.clip_len).astype(np.int32)
    else:
        steps = np.arange(spec.clip_len) * spec.frame_interval
    return _within(_clip_starts(total, span, spec)[:, None] + steps, total, spec.out_of_bound)


def _clip_span(fps: float | None, spec: SampleFrames) -> float:
    """Source frames that a clip covers.

    With a target_fps it is a fraction of the video's frame rate, and counts the interval after the
    last frame; without one it ends at the last frame.
    """
    if spec.target_fps is None:
        return (spec.clip_len - 1) * spec.frame_interval + 1
    ratio = _frame_rate(fps) / spec.target_fps if fps else 1.0
    return max(1.0, spec.clip_len * spec.frame_interval * ratio)


def _frame_rate(fps: float) -> float:
    if not math.isfinite(fps) or fps < 0:
        raise ValueError(f"a frame rate is a positive number, or None where unknown; got fps={fps}")
    return fps


def _clip_starts(total: int, span: float, spec: SampleFrames) -> _Numbers:
    if spec.clip_len == 1:
        segment = total / spec.num_clips
        edges = np.arange(spec.num_clips) * segment
        middles = edges + segment / 2
        return np.concatenate([middles, edges]) if spec.twice_sample else middles
    slack = max(total - span, 0)
    if spec.total_clips == 1:
        return np.array([slack // 2])
    if spec.num_clips == 1:
        raise ValueError(
            "twice_sample with num_clips=1 and clip_len > 1 has no meaning in mmaction2, "
            "which divides by num_clips - 1; use num_clips >= 2"
        )
    # With twice_sample the second half continues past the end instead of shifting the first:
    # mmaction2 spaces all of them by num_clips - 1, and out_of_bound brings them back.
    gap = slack / (spec.num_clips - 1)
    clips = np.arange(spec.total_clips)
    return clips * np.floor(gap) if spec.target_fps is not None else np.round(clips * gap)


def _dense_sample_frames(total: int, spec: DenseSampleFrames) -> _Numbers:
    last_position = max(0, total - spec.sample_range)
    positions = np.linspace(0, last_position, num=spec.num_sample_positions, dtype=int)
    offsets = np.arange(spec.num_clips) * (spec.sample_range // spec.num_clips)
    starts = ((positions[:, None] + offsets) % total).ravel()
    steps = np.arange(spec.clip_len) * spec.frame_interval
    return _within(starts[:, None] + steps, total, spec.out_of_bound)


def _uniform_sample(total: int, spec: UniformSample) -> _Numbers:
    segment = (total - 1) / spec.clip_len
    starts: NDArray[np.int64] = np.round(segment * np.arange(spec.clip_len)).astype(np.int64)
    share = segment / (spec.num_clips + 1)
    shifts = (share * np.arange(1, spec.num_clips + 1)).astype(np.int64)
    numbers: _Numbers = starts + shifts[:, None]
    return numbers


def _within(numbers: _Numbers, total: int, rule: Literal["loop", "repeat_last"]) -> _Numbers:
    """[clips, clip_len] numbers brought into the video.

    repeat_last repeats the last frame of the *clip* that lies in the video, and frame 0 where none
    does.
    """
    if rule == "loop":
        looped: _Numbers = np.mod(numbers, total)
        return looped
    inside = numbers < total
    last = np.max(np.where(inside, numbers, 0), axis=1, keepdims=True)
    return np.where(inside, numbers, last)
