"""Flow images are the motion of the video, in the grey levels that flow datasets have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from action_export.errors import VideoError
from action_export.optical_flow import flow_images, quantise
from support.encode import encode

RIGHT, DOWN = 3, -2
"""Pixels per frame."""


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of one blurred texture that moves by (RIGHT, DOWN), twice as far at the end."""
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (160, 200), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 3)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    frames = [np.roll(texture, (DOWN * step, RIGHT * step), (0, 1)) for step in (0, 1, 2, 4)]
    rgb = np.repeat(np.stack(frames)[..., None], 3, axis=3)
    return encode(tmp_path_factory.mktemp("moving") / "moving.mp4", rgb)


def motion(image: np.ndarray) -> tuple[float, float]:
    """The median of x and y, in pixels per frame."""
    x, y = np.median(image.reshape(-1, 2), axis=0) / 255 * 40 - 20
    return float(x), float(y)


def test_an_image_is_the_motion_to_the_next_frame_with_x_first(moving: Path) -> None:
    images = flow_images(moving, [0, 2])
    assert images.keys() == {0, 2}
    assert images[0].shape == (160, 200, 2)
    assert images[0].dtype == np.uint8
    # a grey level is 0.16 pixels
    assert motion(images[0]) == pytest.approx((RIGHT, DOWN), abs=0.2)
    assert motion(images[2]) == pytest.approx((2 * RIGHT, 2 * DOWN), abs=0.2)


def test_the_last_frame_repeats_the_flow_before_it(moving: Path) -> None:
    images = flow_images(moving, [3, 2, 3, 9])
    np.testing.assert_array_equal(images[3], images[2])
    np.testing.assert_array_equal(images[9], images[2])
    np.testing.assert_array_equal(flow_images(moving, [3])[3], images[2])


def test_an_image_does_not_depend_on_which_others_are_asked_for(moving: Path) -> None:
    np.testing.assert_array_equal(flow_images(moving, [1])[1], flow_images(moving, range(4))[1])


def test_twenty_pixels_are_the_bound_and_no_motion_is_128() -> None:
    flow = np.array([-1e9, -20, -19.9, -0.1, 0, 0.1, 5, 19.9, 20, 1e9], np.float32)
    assert quantise(flow).tolist() == [0, 0, 1, 127, 128, 128, 159, 254, 255, 255]


def test_a_file_that_is_no_video_has_no_flow(tmp_path: Path) -> None:
    notes = tmp_path / "notes.mp4"
    notes.write_bytes(b"a note\n" * 200)
    with pytest.raises(VideoError, match=r"notes\.mp4 has no optical flow") as caught:
        flow_images(notes, [0])
    assert "--videos" in caught.value.hint


def test_a_single_frame_has_no_flow(tmp_path: Path) -> None:
    video = encode(tmp_path / "one.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(VideoError, match=r"one\.mp4 has fewer than two frames") as caught:
        flow_images(video, [0])
    assert "--videos" in caught.value.hint
