"""Frames as JPEG files, one for each, where the contract says so: small on the wire, and lossy.

Both ends use OpenCV, so `pixel_library`'s OpenCVMissingError is raised where it is missing.
Optimised Huffman tables took 3 to 6 % fewer bytes and two to four times as long to encode; restart
markers serve decoders that nobody uses here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .spec import Contract, FixedResize, Jpeg, KeepRatioResize, Resize
from .transforms import BadRequestError, Frames, OpenCVMissingError

# What a request of pixels can hold, gRPC's largest message. A request of files must not decode into
# more: a file of a few kilobytes can announce 65535 x 65535 pixels.
_MOST_BYTES = 2**31 - 1

# Of a frame whose long side the contract leaves open: wider than any camera's picture, and narrower
# than what only serves to fill the server's memory.
_MOST_ASPECT = 16
# 8K (DCI): of a frame that the contract does not resize.
_MOST_PIXELS = 8192 * 4320
# Each scan of a progressive file goes over the whole picture, and may take 20 bytes of the file.
# libjpeg's own script has 10 scans.
_MOST_SCANS = 64


def require_codec() -> Any:
    """OpenCV, which encodes and decodes. Raises OpenCVMissingError where it is not installed."""
    try:
        return importlib.import_module("cv2")
    except ImportError as exc:
        raise OpenCVMissingError(
            "frames travel as JPEG, and cv2 cannot be imported; "
            "pip install opencv-python-headless where this runs"
        ) from exc


def most_pixels(resize: Resize | None) -> int:
    """Of a frame as a client sends it: no larger than the resize makes it (see `wire.shrink`)."""
    match resize:
        case None:
            return _MOST_PIXELS
        case FixedResize():
            return resize.width * resize.height
        case KeepRatioResize():
            return resize.short * (resize.long or resize.short * _MOST_ASPECT)


def encode(frames: Frames, how: Jpeg) -> NDArray[np.object_]:
    """A file of each RGB frame, uint8 [F, H, W, 3] to bytes [F]."""
    cv2 = require_codec()
    sampling = {
        "halved": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        "full": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    }
    options = [
        *(cv2.IMWRITE_JPEG_QUALITY, how.quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling[how.chroma]),
    ]
    files = np.empty(len(frames), np.object_)
    bgr = np.empty(frames.shape[1:], np.uint8)
    for row, frame in enumerate(frames):
        cv2.cvtColor(frame, cv2.COLOR_RGB2BGR, dst=bgr)
        files[row] = cv2.imencode(".jpg", bgr, options)[1].tobytes()
    return files


def decode(files: NDArray[np.object_], contract: Contract) -> Frames:
    """The RGB frames, uint8 [F, H, W, 3], of files that are all of one size.

    Raises:
        BadRequestError: no files, one that is no JPEG, lacks its EOI or cannot be decoded, sizes
            that differ, or more files, pixels or scans than a client of this contract sends.
    """
    cv2 = require_codec()
    height, width = _common_size(files, contract)
    frames = np.empty((len(files), height, width, 3), np.uint8)
    # The pixels as they are stored, whatever way up a camera's note in the file wants them shown.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    for row, file in enumerate(files):
        try:
            bgr = cv2.imdecode(np.frombuffer(file, np.uint8), flags)
        except cv2.error:
            bgr = None
        if bgr is None or bgr.shape != frames.shape[1:]:
            raise _refusal(row, "cannot be decoded")
        cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=frames[row])
    return frames


def _common_size(files: NDArray[np.object_], contract: Contract) -> tuple[int, int]:
    """(height, width) of all files by their headers, before any pixel of one is decoded."""
    if files.ndim != 1 or not 0 < files.size <= contract.positions:
        raise BadRequestError(
            "frames_jpeg must be one JPEG file for each distinct frame, [F], with F at most the "
            f"{contract.positions} sampled positions; got shape {list(files.shape)}"
        )
    sizes = [_announced_size(row, file) for row, file in enumerate(files)]
    first = sizes[0]
    for row, size in enumerate(sizes):
        if size != first:
            raise _refusal(row, f"has {_wxh(size)} pixels, and the first one {_wxh(first)}")
    height, width = first
    most = most_pixels(contract.resize)
    if height * width > most:
        raise BadRequestError(
            f"frames_jpeg has frames of {_wxh(first)}, and one of this model has at most {most} "
            "pixels once it is resized as the serving contract says: resize before encoding"
        )
    if len(files) * height * width * 3 > _MOST_BYTES:
        raise BadRequestError(
            f"{len(files)} frames of {_wxh(first)} are more than the 2 GiB of pixels that a "
            "request may decode into"
        )
    return first


def _announced_size(row: int, file: bytes) -> tuple[int, int]:
    """(height, width) in the frame header (ITU-T T.81, B.2.2)."""
    if file[:2] != b"\xff\xd8":
        raise _refusal(row, "is no JPEG file")
    # Of a file that is cut short, libjpeg makes up the rest in grey. This finds what a transfer cut
    # off; it does not find what is missing before an EOI.
    if file[-2:] != b"\xff\xd9":
        raise _refusal(row, "is cut short: it does not end with the marker EOI")
    # Within a scan, 0xFF is followed by 0 or by a restart marker, so this counts scans.
    if (scans := file.count(b"\xff\xda")) > _MOST_SCANS:
        raise _refusal(row, f"has {scans} scans, and {_MOST_SCANS} are read")
    at = 2
    while at + 9 <= len(file) and file[at] == 0xFF:
        marker = file[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height = int.from_bytes(file[at + 5 : at + 7], "big")
            width = int.from_bytes(file[at + 7 : at + 9], "big")
            if not height or not width:
                raise _refusal(row, f"announces {_wxh((height, width))} pixels")
            return height, width
        else:
            at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    raise _refusal(row, "has no frame header")


# DHT, JPG and DAC lie among the markers of frames.
_NO_FRAME = (0xC4, 0xC8, 0xCC)


def _refusal(row: int, fact: str) -> BadRequestError:
    return BadRequestError(f"frames_jpeg[{row}] {fact}")


def _wxh(size: Sequence[int]) -> str:
    height, width = size
    return f"{width}x{height}"
