"""What a client sends: small frames, as pixels or as JPEG."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from action_runtime import jpeg, transforms, wire
from action_runtime.spec import (
    Contract,
    Crop,
    FixedResize,
    Jpeg,
    KeepRatioResize,
    SampleFrames,
)
from support.encode import moving_shapes

CONTRACT = Contract(
    sampler=SampleFrames(clip_len=4),
    resize=KeepRatioResize(short=48),
    crop=Crop(kind="center", width=48, height=48),
    classes=3,
    average="prob",
)


def noise(count: int, height: int, width: int) -> np.ndarray:
    shape = (count, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# Shrinking: only if smaller, and only if the server then has nothing left to do.


@pytest.mark.parametrize(
    ("size", "resize"),
    [
        ((720, 1280), KeepRatioResize(short=256)),
        ((1280, 720), KeepRatioResize(short=256)),
        ((257, 341), KeepRatioResize(short=256)),
        ((1080, 1920), KeepRatioResize(short=256, long=340)),
        ((333, 1001), KeepRatioResize(short=224, long=300)),
        ((240, 320), FixedResize(width=171, height=128)),
    ],
)
def test_large_frames_are_sent_as_the_server_would_resize_them(
    size: tuple[int, int], resize: KeepRatioResize | FixedResize
) -> None:
    frames = noise(2, *size)
    small = wire.shrink(frames, resize)
    assert small.nbytes < frames.nbytes
    assert np.array_equal(small, transforms.resize(frames, resize))
    assert transforms.resize(small, resize) is small


@pytest.mark.parametrize(
    ("size", "resize"),
    [
        ((72, 96), KeepRatioResize(short=256)),
        ((256, 340), KeepRatioResize(short=256)),
        ((100, 100), FixedResize(width=171, height=128)),
        ((500, 500), None),
        ((4, 4000), KeepRatioResize(short=4, long=100)),
    ],
)
def test_other_frames_are_sent_as_they_are(
    size: tuple[int, int], resize: KeepRatioResize | FixedResize | None
) -> None:
    frames = noise(1, *size)
    assert wire.shrink(frames, resize) is frames


def test_every_size_that_is_shrunk_stays_as_it_is_on_the_server() -> None:
    shrunk = 0
    for height, width in np.random.default_rng(1).integers(200, 3000, (3000, 2)).tolist():
        frames = np.broadcast_to(np.uint8(0), (1, height, width, 3))
        resize = KeepRatioResize(short=171, long=257)
        small = transforms.target_size(height, width, resize)
        if transforms.target_size(*small, resize) == small:
            shrunk += 1
        else:
            assert wire.shrink(frames, resize) is frames
    assert shrunk > 2900


def test_frames_that_the_resize_would_change_twice_are_left_to_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, resize = noise(1, 100, 100), KeepRatioResize(short=50)
    sizes = {(100, 100): (50, 50), (50, 50): (50, 51)}
    monkeypatch.setattr(transforms, "target_size", lambda h, w, spec: sizes[h, w])
    assert wire.shrink(frames, resize) is frames


def test_an_interpolation_that_is_missing_here_is_left_to_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transforms, "_find_cv2", lambda: None)
    frames = noise(1, 100, 100)
    assert wire.shrink(frames, KeepRatioResize(short=50, interpolation="area")) is frames
    assert wire.shrink(frames, KeepRatioResize(short=50)).shape == (1, 50, 50, 3)


# Packing.


def test_pixels_are_sent_as_they_are() -> None:
    frames = noise(2, 48, 64)
    assert wire.pack(frames, CONTRACT) is frames


def test_jpeg_has_the_quality_of_the_contract() -> None:
    frames = moving_shapes(2, 48, 64)
    for quality in (60, 95):
        files = wire.pack(frames, replace(CONTRACT, wire=Jpeg(quality=quality)))
        assert list(files) == list(jpeg.encode(frames, Jpeg(quality=quality)))
