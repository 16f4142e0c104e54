"""JPEG on the wire: colours, sizes, and what is refused before a pixel is decoded."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from action_runtime import jpeg, wire
from action_runtime.spec import (
    Contract,
    Crop,
    FixedResize,
    Jpeg,
    KeepRatioResize,
    Resize,
    SampleFrames,
)
from action_runtime.transforms import BadRequestError, OpenCVMissingError
from numpy.typing import NDArray
from support.videos import decode, real_videos

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    """Three of 176x144."""
    return decode(real_videos()[2], 3)


def as_files(*files: bytes) -> NDArray[np.object_]:
    array = np.empty(len(files), np.object_)
    array[:] = files
    return array


CONTRACT = Contract(
    sampler=SampleFrames(clip_len=16),
    resize=None,
    crop=Crop(kind="center", width=112, height=112),
    classes=3,
    average="prob",
    wire=Jpeg(),
)


def decoded(files: NDArray[np.object_], contract: Contract = CONTRACT) -> NDArray[np.uint8]:
    return jpeg.decode(files, contract)


def announcing(file: bytes, width: int, height: int) -> bytes:
    """The file with another size in its frame header."""
    at = file.index(b"\xff\xc0") + 5
    return file[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + file[at + 4 :]


def test_frames_come_back_within_a_few_grey_levels_and_in_their_order(
    frames: NDArray[np.uint8],
) -> None:
    back = decoded(jpeg.encode(frames, Jpeg(quality=95)))
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    off = np.abs(back.astype(int) - frames).mean(axis=(1, 2, 3))
    assert (off < 1.5).all()
    # neither the frames nor the colours have changed places
    for other in (frames[::-1], frames[..., ::-1]):
        assert np.abs(back.astype(int) - other).mean() > 1.5 * off.max()


@pytest.mark.parametrize("channel", range(3))
def test_red_is_red_and_blue_is_blue_in_any_decoder(channel: int, tmp_path: Path) -> None:
    frame = np.zeros((1, 16, 24, 3), np.uint8)
    frame[..., channel] = 200
    (file,) = jpeg.encode(frame, Jpeg(quality=95))
    path = tmp_path / "frame.jpg"
    path.write_bytes(file)
    (pixels,) = decode(path, 1)  # FFmpeg's, which is none of OpenCV's
    assert np.abs(pixels.astype(int) - frame[0]).max() <= 3


def test_a_higher_quality_is_larger_and_nearer(frames: NDArray[np.uint8]) -> None:
    found = []
    for quality in (50, 80, 95, 100):
        files = jpeg.encode(frames, Jpeg(quality=quality))
        back = decoded(files).astype(int)
        found.append((sum(map(len, files)), -float(np.abs(back - frames).mean())))
    assert found == sorted(found)
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("how", "luma"), [(Jpeg(quality=100, chroma="full"), 0x11), (Jpeg(quality=100), 0x22)]
)
def test_chroma_is_what_the_contract_says(how: Jpeg, luma: int, frames: NDArray[np.uint8]) -> None:
    for file in jpeg.encode(frames, how):
        header = file[file.index(b"\xff\xc0") :]
        assert header[9] == 3
        samplings = [header[11 + 3 * component] for component in range(3)]
        assert samplings == [luma, 0x11, 0x11]


# The largest number in libjpeg's tables at each quality, by Annex K of ITU-T T.81 and its scaling.
@pytest.mark.parametrize(("quality", "largest"), [(60, 97), (75, 61), (90, 24), (95, 12), (100, 1)])
def test_the_tables_are_those_of_the_quality(
    quality: int, largest: int, frames: NDArray[np.uint8]
) -> None:
    for file in jpeg.encode(frames, Jpeg(quality=quality, chroma="full")):
        at = file.index(b"\xff\xdb")
        assert max(file[at + 5 : at + 69]) == largest


def test_the_pixels_are_taken_as_they_are_stored(frames: NDArray[np.uint8]) -> None:
    """EXIF orientation 6 would turn them."""
    file = jpeg.encode(frames, Jpeg(quality=95))[0]
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06" + bytes(6)
    exif = b"Exif\x00\x00" + tiff
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    turned = file[:2] + segment + file[2:]
    shown = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (176, 144, 3)
    np.testing.assert_array_equal(decoded(as_files(turned)), decoded(as_files(file)))


def test_a_frame_of_one_colour_channel_and_a_progressive_one_are_read(
    frames: NDArray[np.uint8],
) -> None:
    grey = cv2.imencode(".jpg", frames[0, ..., 0])[1].tobytes()
    progressive = cv2.imencode(".jpg", frames[0], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert decoded(as_files(grey, progressive)).shape == (2, 144, 176, 3)


BAD = {
    "no JPEG": (lambda file: b"\x89PNG" + file, r"frames_jpeg\[1\] is no JPEG file"),
    "nothing": (lambda file: b"", r"frames_jpeg\[1\] is no JPEG file"),
    "cut short": (lambda file: file[:-200], r"frames_jpeg\[1\] is cut short"),
    "no header": (lambda file: b"\xff\xd8\xff\xd9", r"frames_jpeg\[1\] has no frame header"),
    "a header that runs away": (
        lambda file: b"\xff\xd8\xff\xe0\xff\xff\x00\x00\x00\x00\x00\xff\xd9",
        r"frames_jpeg\[1\] has no frame header",
    ),
    "no pixels": (lambda file: announcing(file, 0, 144), r"frames_jpeg\[1\] announces 0x144"),
    "another size": (
        lambda file: announcing(file, 160, 144),
        r"frames_jpeg\[1\] has 160x144 pixels, and the first one 176x144",
    ),
    "no picture": (
        lambda file: file[: file.index(b"\xff\xc4")] + b"\xff\xd9",
        r"frames_jpeg\[1\] cannot be decoded",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_frame_is_refused_by_its_number(name: str, frames: NDArray[np.uint8]) -> None:
    spoil, words = BAD[name]
    files = jpeg.encode(frames, Jpeg(quality=95))
    files[1] = spoil(files[1])
    with pytest.raises(BadRequestError, match=words):
        decoded(files)


def test_what_is_missing_before_the_last_marker_is_grey_and_not_noticed(
    frames: NDArray[np.uint8],
) -> None:
    """docs/preprocessing.md says so."""
    (file,) = jpeg.encode(frames[:1], Jpeg(quality=95))
    (half,) = decoded(as_files(file[: len(file) // 2] + b"\xff\xd9"))
    assert np.ptp(half[-8:]) == 0


@pytest.mark.parametrize("files", [as_files(), np.empty((1, 1), np.object_)])
def test_no_files_are_refused(files: NDArray[np.object_]) -> None:
    with pytest.raises(BadRequestError, match="one JPEG file for each distinct frame"):
        decoded(files)


SIZES: list[tuple[Resize | None, int]] = [
    (FixedResize(width=224, height=160), 35840),
    (KeepRatioResize(short=256, long=340), 87040),
    (KeepRatioResize(short=256), 1048576),
    (None, 35389440),
]


@pytest.mark.parametrize(("spec", "most"), SIZES)
def test_more_pixels_than_a_client_sends_are_refused_before_one_is_decoded(
    spec: Resize | None, most: int, frames: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = replace(CONTRACT, resize=spec)
    file = jpeg.encode(frames, Jpeg())[0]
    height = 1024
    width, rest = divmod(most, height)
    assert not rest
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    bomb = announcing(file, width + 1, height)
    with pytest.raises(BadRequestError, match=f"at most {most} pixels"):
        decoded(as_files(bomb), contract)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    with pytest.raises(BadRequestError, match="cannot be decoded"):  # so it was not refused before
        decoded(as_files(announcing(file, width, height)), contract)


@pytest.mark.parametrize("spec", [spec for spec, _ in SIZES if spec is not None])
@pytest.mark.parametrize("size", [(720, 1280), (1280, 720), (1, 15), (1080, 2560), (8, 8), (3, 2)])
def test_no_client_sends_more_pixels_than_are_taken(spec: Resize, size: tuple[int, int]) -> None:
    frame = np.zeros((1, *size, 3), np.uint8)
    _, height, width, _ = wire.shrink(frame, spec).shape
    assert height * width <= jpeg.most_pixels(spec)


def test_what_would_decode_into_more_than_a_request_can_hold_is_refused(
    frames: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = announcing(jpeg.encode(frames, Jpeg())[0], 8192, 4320)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    with pytest.raises(BadRequestError, match="cannot be decoded"):
        decoded(as_files(large))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(BadRequestError, match=r"21 frames of 8192x4320 are more than the 2 GiB"):
        decoded(as_files(*[large] * 21), replace(CONTRACT, sampler=SampleFrames(clip_len=32)))


def test_more_files_than_sampled_positions_are_refused(frames: NDArray[np.uint8]) -> None:
    (file,) = jpeg.encode(frames[:1], Jpeg())
    assert len(decoded(as_files(*[file] * 16))) == 16
    with pytest.raises(
        BadRequestError, match=r"at most the 16 sampled positions; got shape \[17\]"
    ):
        decoded(as_files(*[file] * 17))


def test_a_file_of_many_scans_is_refused(frames: NDArray[np.uint8]) -> None:
    """A scan of a few bytes takes as long as the picture is large."""
    progressive = cv2.imencode(".jpg", frames[0], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    scans = progressive.count(b"\xff\xda")
    assert 1 < scans < 64
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    most = progressive[:-2] + last * (64 - scans) + b"\xff\xd9"
    assert decoded(as_files(most)).shape == (1, 144, 176, 3)
    with pytest.raises(BadRequestError, match=r"frames_jpeg\[0\] has 65 scans, and 64 are read"):
        decoded(as_files(most[:-2] + last + b"\xff\xd9"))


def test_without_opencv_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(OpenCVMissingError, match="pip install opencv-python-headless"):
        jpeg.require_codec()
