"""The sampler against mmaction2's own transforms, index for index."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from action_runtime.sampling import distinct, sample
from action_runtime.spec import DenseSampleFrames, SampleFrames, Sampler, UniformSample
from hypothesis import given
from hypothesis import strategies as st
from mmaction.datasets.transforms import loading
from numpy.typing import NDArray

Case = tuple[int, float | None, Sampler, Any]
"""total_frames, fps, our sampler, mmaction2's transform."""

FRAME_RATES = (
    0.1,
    0.5,
    1,
    8,
    10,
    12.5,
    14.985,
    15,
    23.976,
    24,
    25,
    29.97,
    30000 / 1001,
    30,
    48,
    59.94,
    60,
    240,
)
TARGETS = (1, 5, 7.5, 12.5, 15, 23.976, 24, 25, 29.97, 30, 60)


def _total_frames(rng: random.Random) -> int:
    """1 to about 8,000, short videos as likely as long ones."""
    return round(2 ** rng.uniform(0, 13))


def _clip_len(rng: random.Random) -> int:
    return 1 if rng.random() < 0.25 else round(2 ** rng.uniform(1, 6))


def _fps(rng: random.Random) -> float | None:
    return rng.choice((None, 0, 0.0, *FRAME_RATES, rng.uniform(0.5, 240)))


def _target_fps(rng: random.Random) -> float | None:
    return rng.choice((*TARGETS, rng.uniform(0.5, 120))) if rng.random() < 0.5 else None


def _out_of_bound(rng: random.Random) -> Any:
    return rng.choice(("loop", "repeat_last"))


def _sample_frames_case(rng: random.Random) -> Case:
    clip_len, num_clips = _clip_len(rng), rng.randint(1, 30) if rng.random() < 0.7 else 1
    spec = SampleFrames(
        clip_len=clip_len,
        num_clips=num_clips,
        frame_interval=rng.randint(1, 16),
        # mmaction2 divides by zero on a single long clip that is sampled twice.
        twice_sample=rng.random() < 0.5 and (clip_len == 1 or num_clips > 1),
        out_of_bound=_out_of_bound(rng),
        target_fps=_target_fps(rng),
    )
    reference = loading.SampleFrames(
        clip_len=spec.clip_len,
        frame_interval=spec.frame_interval,
        num_clips=spec.num_clips,
        twice_sample=spec.twice_sample,
        out_of_bound_opt=spec.out_of_bound,
        target_fps=spec.target_fps,
        keep_tail_frames=rng.random() < 0.5,
        test_mode=True,
    )
    return _total_frames(rng), _fps(rng), spec, reference


def _dense_sample_frames_case(rng: random.Random) -> Case:
    spec = DenseSampleFrames(
        clip_len=_clip_len(rng),
        frame_interval=rng.randint(1, 16),
        num_clips=rng.randint(1, 12),
        sample_range=rng.choice((1, 16, 64, 128, rng.randint(1, 400))),
        num_sample_positions=rng.choice((1, 3, 10, rng.randint(1, 20))),
        out_of_bound=_out_of_bound(rng),
    )
    reference = loading.DenseSampleFrames(
        clip_len=spec.clip_len,
        frame_interval=spec.frame_interval,
        num_clips=spec.num_clips,
        sample_range=spec.sample_range,
        num_sample_positions=spec.num_sample_positions,
        out_of_bound_opt=spec.out_of_bound,
        # Taken by the base class and without any effect here.
        twice_sample=rng.random() < 0.5,
        keep_tail_frames=rng.random() < 0.5,
        target_fps=_target_fps(rng),
        test_mode=True,
    )
    return _total_frames(rng), _fps(rng), spec, reference


def _uniform_sample_case(rng: random.Random) -> Case:
    spec = UniformSample(clip_len=_clip_len(rng), num_clips=rng.randint(1, 12))
    reference = loading.UniformSample(
        clip_len=spec.clip_len, num_clips=spec.num_clips, test_mode=True
    )
    return _total_frames(rng), _fps(rng), spec, reference


def _reference(total_frames: int, fps: float | None, transform: Any) -> NDArray[np.int32]:
    results = {"total_frames": total_frames, "start_index": 0}
    frame_rate = {} if fps is None else {"avg_fps": fps}
    indices: NDArray[np.int32] = transform(results | frame_rate)["frame_inds"]
    return indices


@pytest.mark.parametrize(
    ("case", "count"),
    [
        (_sample_frames_case, 12_000),
        (_dense_sample_frames_case, 5_000),
        (_uniform_sample_case, 3_000),
    ],
)
def test_equals_mmaction2_index_for_index(
    case: Callable[[random.Random], Case], count: int
) -> None:
    rng = random.Random(20_000)
    for _ in range(count):
        total_frames, fps, spec, transform = case(rng)
        expected = _reference(total_frames, fps, transform)
        got = sample(total_frames, fps, spec)
        assert got.dtype == expected.dtype == np.int32
        assert got.shape == (spec.total_clips * spec.clip_len,)
        np.testing.assert_array_equal(got, expected, f"{total_frames=} {fps=} {spec}")
        assert 0 <= got.min() <= got.max() < total_frames


def test_clips_past_the_end_repeat_frame_zero() -> None:
    """mmaction2's repeat_last repeats the last frame of the clip, and here there is none."""
    spec = SampleFrames(clip_len=4, num_clips=2, twice_sample=True, out_of_bound="repeat_last")
    assert sample(16, None, spec)[-4:].tolist() == [0, 0, 0, 0]


def test_an_unknown_frame_rate_keeps_the_intervals() -> None:
    spec = SampleFrames(clip_len=4, frame_interval=2, target_fps=30)
    np.testing.assert_array_equal(sample(100, None, spec), sample(100, 30, spec))
    np.testing.assert_array_equal(sample(100, 0, spec), sample(100, 30, spec))
    assert sample(100, 60, spec).tolist() != sample(100, 30, spec).tolist()


@pytest.mark.parametrize("target_fps", [None, 30])
def test_a_single_long_clip_cannot_be_sampled_twice(target_fps: float | None) -> None:
    reference = loading.SampleFrames(
        clip_len=4, num_clips=1, twice_sample=True, target_fps=target_fps, test_mode=True
    )
    with pytest.raises(ZeroDivisionError):
        _reference(3, 30, reference)
    spec = SampleFrames(clip_len=4, num_clips=1, twice_sample=True, target_fps=target_fps)
    with pytest.raises(ValueError, match=r"twice_sample with num_clips=1 .* use num_clips >= 2"):
        sample(3, 30, spec)


@pytest.mark.parametrize("total_frames", [0, -1])
@pytest.mark.parametrize(
    "spec", [SampleFrames(clip_len=1), DenseSampleFrames(clip_len=1), UniformSample(clip_len=1)]
)
def test_a_video_without_frames_is_refused(total_frames: int, spec: Sampler) -> None:
    with pytest.raises(ValueError, match=f"at least one frame, got total_frames={total_frames}"):
        sample(total_frames, 25, spec)


@pytest.mark.parametrize("fps", [float("nan"), float("inf"), -25.0])
def test_an_impossible_frame_rate_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match=f"got fps={fps}"):
        sample(100, fps, SampleFrames(clip_len=4, target_fps=30))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=400))
def test_distinct_frames_and_their_index_give_the_positions_back(indices: list[int]) -> None:
    frame_numbers, frame_index = distinct(np.array(indices, np.int32))
    assert frame_numbers.dtype == frame_index.dtype == np.int32
    assert frame_numbers.tolist() == sorted(set(indices))
    assert frame_numbers[frame_index].tolist() == indices


def test_slowfast_sends_half_of_its_positions() -> None:
    spec = SampleFrames(clip_len=32, frame_interval=2, num_clips=10)
    frame_numbers, frame_index = distinct(sample(280, None, spec))
    assert (len(frame_numbers), len(frame_index)) == (160, 320)
