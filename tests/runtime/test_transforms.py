"""Pixels against mmaction2's own Resize, crops and FormatShape, on frames of real videos."""

from __future__ import annotations

import functools
import random
import sys
from dataclasses import replace
from typing import Any, get_args

import cv2
import mmcv
import numpy as np
import pytest
from action_runtime.interpolation import RESAMPLERS
from action_runtime.spec import (
    Contract,
    Crop,
    FixedResize,
    Interpolation,
    KeepRatioResize,
    Resize,
    SampleFrames,
)
from action_runtime.transforms import (
    BadRequestError,
    Library,
    OpenCVMissingError,
    crop_boxes,
    make_clips,
    pixel_library,
    resize,
    target_size,
)
from mmaction.datasets.transforms import formatting, processing
from numpy.typing import NDArray
from support.videos import decode, real_videos

pytestmark = pytest.mark.cpu

Frames = NDArray[np.uint8]

FRAME_INDEX = np.array([0, 2, 3, 3, 1, 0], np.int32)
SAMPLER = SampleFrames(clip_len=3, num_clips=2)
VIDEOS = {video.stem: video for video in real_videos()}
ORIENTATIONS = ("landscape", "portrait")

Pixels = tuple[Resize | None, Crop | None]


def center(width: int, height: int | None = None) -> Crop:
    return Crop(kind="center", width=width, height=height or width)


def three(width: int, height: int | None = None) -> Crop:
    return Crop(kind="three", width=width, height=height or width)


def ten(width: int, height: int | None = None) -> Crop:
    return Crop(kind="ten", width=width, height=height or width)


PIXELS: dict[str, Pixels] = {
    "short side, center": (KeepRatioResize(short=256), center(224)),
    "short side, three": (KeepRatioResize(short=256), three(256)),
    "short side, ten": (KeepRatioResize(short=256), ten(224)),
    "short side small, three": (KeepRatioResize(short=97), three(97)),
    "both sides limited, center": (KeepRatioResize(short=128, long=171), center(61, 70)),
    "both sides limited, ten": (KeepRatioResize(short=128, long=171), ten(70, 60)),
    "fixed, no crop": (FixedResize(width=112, height=90), None),
    "fixed, center": (FixedResize(width=171, height=128), center(112)),
    "fixed, three across": (FixedResize(width=171, height=112), three(112)),
    "fixed, three down": (FixedResize(width=112, height=171), three(112)),
    "fixed as the crop, three": (FixedResize(width=112, height=112), three(112)),
    "fixed, odd ten": (FixedResize(width=173, height=131), ten(112, 97)),
    "as decoded, center": (None, center(112)),
    "as decoded, ten": (None, ten(101, 99)),
} | {
    f"short side {name}, center": (KeepRatioResize(short=150, interpolation=name), center(128))
    for name in get_args(Interpolation)
}


@functools.cache
def frames_of(video: str, orientation: str) -> Frames:
    frames = decode(VIDEOS[video], 4)
    return np.ascontiguousarray(frames.swapaxes(1, 2)) if orientation == "portrait" else frames


def contract_of(pixels: Pixels, **changes: Any) -> Contract:
    resize_spec, crop = pixels
    contract = Contract(sampler=SAMPLER, resize=resize_spec, crop=crop, classes=400, average="prob")
    return replace(contract, **changes)


def mmaction2_clips(
    frames: Frames, contract: Contract, input_format: str, modality: str = "RGB"
) -> Frames:
    """mmaction2's input for the model, [views, ...] in its own axis order."""
    steps: list[Any] = []
    match contract.resize:
        case KeepRatioResize(short=short, long=long, interpolation=interpolation):
            scale = (-1, short) if long is None else (long, short)
            steps.append(processing.Resize(scale=scale, interpolation=interpolation))
        case FixedResize(width=width, height=height, interpolation=interpolation):
            fixed = {"scale": (width, height), "keep_ratio": False}
            steps.append(processing.Resize(**fixed, interpolation=interpolation))
    if contract.crop is not None:
        crops = {"center": "CenterCrop", "three": "ThreeCrop", "ten": "TenCrop"}
        size = (contract.crop.width, contract.crop.height)
        steps.append(getattr(processing, crops[contract.crop.kind])(crop_size=size))
    steps.append(formatting.FormatShape(input_format))

    results: dict[str, Any] = {
        "imgs": [frames[row] for row in FRAME_INDEX],
        "modality": modality,
        "num_clips": contract.sampler.total_clips,
        "clip_len": contract.sampler.clip_len,
    }
    for step in steps:
        results = step.transform(results)
    clips: Frames = results["imgs"]
    return clips


@pytest.mark.parametrize("pixels", PIXELS.values(), ids=PIXELS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("video", VIDEOS)
def test_equals_mmaction2_to_the_byte(video: str, orientation: str, pixels: Pixels) -> None:
    frames, contract = frames_of(video, orientation), contract_of(pixels)
    clips = make_clips(frames, FRAME_INDEX, contract, "cv2")
    assert clips.dtype == np.uint8
    assert clips.flags.c_contiguous
    assert clips.shape == (1, *contract.clips_shape)
    [views] = clips

    three_d = mmaction2_clips(frames, contract, "NCTHW")
    np.testing.assert_array_equal(views.transpose(0, 4, 1, 2, 3), three_d)
    two_d = mmaction2_clips(frames, contract, "NCHW")
    np.testing.assert_array_equal(views.reshape(-1, *views.shape[2:]).transpose(0, 3, 1, 2), two_d)


@pytest.mark.parametrize("library", ["cv2", "numpy"])
@pytest.mark.parametrize("name", ["short side, three", "short side, ten", "as decoded, ten"])
def test_clips_overwrite_what_they_are_written_into(name: str, library: Library) -> None:
    frames, contract = frames_of("bikes", "landscape"), contract_of(PIXELS[name])
    expected = make_clips(frames, FRAME_INDEX, contract, library)
    out = np.full_like(expected, 77)
    assert make_clips(frames, FRAME_INDEX, contract, library, out) is out
    np.testing.assert_array_equal(out, expected)


def test_each_frame_that_is_used_is_resized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resized: list[Frames] = []
    resize_with = cv2.resize

    def counted(frame: Frames, *size: Any, **options: Any) -> Any:
        resized.append(frame)
        return resize_with(frame, *size, **options)

    monkeypatch.setattr(cv2, "resize", counted)
    frames = frames_of("bikes", "landscape")
    make_clips(frames, np.array([3, 0, 3, 3, 1, 0]), contract_of(PIXELS["short side, ten"]), "cv2")
    assert [
        np.shares_memory(frame, frames[row]) for frame, row in zip(resized, (0, 1, 3), strict=True)
    ] == [True] * 3


@pytest.mark.parametrize("pixels", PIXELS.values(), ids=PIXELS)
def test_optical_flow_equals_mmaction2_to_the_byte(pixels: Pixels) -> None:
    """Two channels of a real picture; mmaction2 mirrors flow in TenCrop without negating x."""
    frames = np.ascontiguousarray(frames_of("bikes", "landscape")[..., :2])
    contract = contract_of(pixels, channels=2)
    clips = make_clips(frames, FRAME_INDEX, contract, "cv2")
    assert clips.shape == (1, *contract.clips_shape)
    [views] = clips

    three_d = mmaction2_clips(frames, contract, "NCTHW", "Flow")
    np.testing.assert_array_equal(views.transpose(0, 4, 1, 2, 3), three_d)
    two_d = mmaction2_clips(frames, contract, "NCHW", "Flow")
    stacked = views.transpose(0, 1, 4, 2, 3).reshape(two_d.shape)
    np.testing.assert_array_equal(stacked, two_d)

    if contract.resize is None or contract.resize.interpolation in RESAMPLERS:
        by_numpy = make_clips(frames, FRAME_INDEX, contract, "numpy").astype(int)
        assert np.abs(by_numpy - clips).max() <= 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize(
    "spec",
    [
        KeepRatioResize(short=100),
        KeepRatioResize(short=256),
        KeepRatioResize(short=320, long=341),
        FixedResize(width=64, height=200),
        FixedResize(width=1500, height=111),
        FixedResize(width=1300, height=760),
        FixedResize(width=1, height=1),
    ],
    ids=str,
)
def test_numpy_is_within_one_grey_level_of_opencv(
    spec: Resize, video: str, orientation: str
) -> None:
    frames = frames_of(video, orientation)[:2]
    for interpolation, tolerance in (("bilinear", 1), ("nearest", 0)):
        wanted = replace(spec, interpolation=interpolation)
        by_numpy = resize(frames, wanted, "numpy").astype(int)
        by_cv2 = resize(frames, wanted, "cv2")
        assert by_numpy.shape == by_cv2.shape == (2, *target_size(*frames.shape[1:3], spec), 3)
        assert np.abs(by_numpy - by_cv2).max() <= tolerance


def test_numpy_bilinear_equals_opencv_on_random_sizes_and_extremes() -> None:
    """Black beside white at any scale, the hardest case for the rounding of the weights."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width, to_height, to_width = (int(n) for n in rng.integers(1, 120, 4))
        frames = rng.choice(np.array([0, 255], np.uint8), (1, height, width, 3))
        spec = FixedResize(width=to_width, height=to_height)
        difference = resize(frames, spec, "numpy").astype(int) - resize(frames, spec, "cv2")
        assert np.abs(difference).max() <= 1, (frames.shape, spec)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 10])
def test_any_number_of_channels(channels: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 40, channels), np.uint8)
    spec = FixedResize(width=23, height=50)
    by_cv2 = resize(frames, spec, "cv2")
    assert by_cv2.shape == (2, 50, 23, channels)
    for channel in range(channels):
        alone = resize(frames[..., channel : channel + 1], spec, "cv2")
        np.testing.assert_array_equal(by_cv2[..., channel : channel + 1], alone)
    assert np.abs(resize(frames, spec, "numpy").astype(int) - by_cv2).max() <= 1


def test_target_size_equals_mmcv() -> None:
    rng = random.Random(0)
    for _ in range(20_000):
        height, width = rng.randint(1, 4000), rng.randint(1, 4000)
        short = rng.randint(1, 600)
        long = rng.choice((None, rng.randint(short, 1000)))
        scale = (float("inf") if long is None else long, short)
        expected_width, expected_height = mmcv.rescale_size((width, height), scale)
        spec = KeepRatioResize(short=short, long=long)
        assert target_size(height, width, spec) == (expected_height, expected_width)


def test_frames_of_the_target_size_are_not_copied() -> None:
    frames = np.zeros((2, 60, 80, 3), np.uint8)
    assert resize(frames, None) is frames
    assert resize(frames, KeepRatioResize(short=60)) is frames
    assert resize(frames, FixedResize(width=80, height=60, interpolation="lanczos")) is frames


def test_the_order_of_the_crops() -> None:
    assert crop_boxes(60, 91, None) == ((0, 0, False),)
    assert crop_boxes(60, 91, center(40, 21)) == ((19, 25, False),)
    assert crop_boxes(60, 91, three(60)) == ((0, 0, False), (0, 30, False), (0, 15, False))
    assert crop_boxes(91, 60, three(60)) == ((0, 0, False), (30, 0, False), (15, 0, False))
    places = [(0, 0), (0, 28), (20, 0), (20, 28), (10, 14)]
    expected = tuple((top, left, flip) for top, left in places for flip in (False, True))
    assert crop_boxes(61, 91, ten(60, 40)) == expected


FRAMES = np.zeros((4, 60, 80, 3), np.uint8)
KEPT = contract_of((None, center(50)))


@pytest.mark.parametrize(
    ("frames", "frame_index", "contract", "sentence"),
    [
        (FRAMES[0], FRAME_INDEX, KEPT, r"rank 4, \[F, H, W, C\]; got shape \[60, 80, 3\]"),
        (FRAMES[:0], FRAME_INDEX, KEPT, r"at least one frame and pixel; got shape \[0, 60, 80, 3"),
        (FRAMES[:, :0], FRAME_INDEX, KEPT, r"at least one frame and pixel; got shape \[4, 0"),
        (
            FRAMES[:, :, :0],
            FRAME_INDEX,
            KEPT,
            r"at least one frame and pixel; got shape \[4, 60, 0",
        ),
        (FRAMES[..., :1], FRAME_INDEX, KEPT, r"3 channels last; got shape \[4, 60, 80, 1\]"),
        (FRAMES.astype(np.float32), FRAME_INDEX, KEPT, "must be uint8, got float32"),
        (FRAMES, FRAME_INDEX[:5], KEPT, r"each of the 6 sampled positions; got shape \[5\]"),
        (FRAMES, FRAME_INDEX[0], KEPT, r"each of the 6 sampled positions; got shape \[\]"),
        (
            FRAMES,
            FRAME_INDEX[:, None],
            KEPT,
            r"each of the 6 sampled positions; got shape \[6, 1\]",
        ),
        (FRAMES, FRAME_INDEX.astype(float), KEPT, "must hold integers, got float64"),
        (FRAMES, FRAME_INDEX - 1, KEPT, r"frame_index\[0\] is -1; with 4 frames .* 0 to 3"),
        (FRAMES, FRAME_INDEX + 1, KEPT, r"frame_index\[2\] is 4; with 4 frames .* 0 to 3"),
        (
            FRAMES,
            FRAME_INDEX,
            contract_of((None, center(81, 60))),
            "80 wide x 60 high after the resize are smaller than the center crop of 81 wide x 60",
        ),
        (
            FRAMES,
            FRAME_INDEX,
            contract_of((KeepRatioResize(short=30, long=35), ten(35))),
            "35 wide x 26 high after the resize are smaller than the ten crop of 35 wide x 35",
        ),
        (
            FRAMES,
            FRAME_INDEX,
            contract_of((KeepRatioResize(short=30), three(20))),
            "40 wide x 30 high after the resize must have the height or the width of the three",
        ),
        (
            np.zeros((4, 1, 5000, 3), np.uint8),
            FRAME_INDEX,
            contract_of((KeepRatioResize(short=256, long=340), center(224))),
            "340 wide x 0 high after the resize are smaller",
        ),
    ],
)
def test_a_bad_request_is_refused_and_says_what_was_expected(
    frames: Any, frame_index: Any, contract: Contract, sentence: str
) -> None:
    with pytest.raises(BadRequestError, match=sentence):
        make_clips(frames, frame_index, contract)


def test_a_resize_to_nothing_is_refused() -> None:
    with pytest.raises(BadRequestError, match="of 5000 wide x 1 high would be resized to 340 wide"):
        resize(np.zeros((1, 1, 5000, 3), np.uint8), KeepRatioResize(short=256, long=340))


def test_opencv_is_used_where_it_is_there() -> None:
    assert pixel_library(KeepRatioResize(short=256)) == "cv2"
    assert pixel_library(KeepRatioResize(short=256), "numpy") == "numpy"


def test_without_opencv_numpy_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert pixel_library(None) == pixel_library(KeepRatioResize(short=256)) == "numpy"
    frames, contract = frames_of("bikes", "landscape"), contract_of(PIXELS["short side, three"])
    np.testing.assert_array_equal(
        make_clips(frames, FRAME_INDEX, contract),
        make_clips(frames, FRAME_INDEX, contract, "numpy"),
    )
    with pytest.raises(OpenCVMissingError, match="pip install opencv-python-headless"):
        pixel_library(None, "cv2")


@pytest.mark.parametrize("interpolation", ["bicubic", "area", "lanczos"])
def test_without_opencv_other_interpolations_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, interpolation: Any
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    spec = FixedResize(width=20, height=20, interpolation=interpolation)
    with pytest.raises(
        OpenCVMissingError, match=f"{interpolation} resizing needs OpenCV .*pip ins"
    ):
        resize(FRAMES, spec)
