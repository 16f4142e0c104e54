"""Frames to clips: resized, cropped and arranged as mmaction2's Resize, crops and FormatShape do.

Frames are uint8 [F, H, W, C]. With OpenCV every byte equals mmaction2's; without it, bilinear
frames are within one grey level and nearest ones are equal.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .interpolation import RESAMPLERS
from .spec import Contract, Crop, FixedResize, Interpolation, KeepRatioResize, Resize

Frames = NDArray[np.uint8]
Box = tuple[int, int, bool]
"""(top, left, flipped): a crop that is mirrored left to right after it is cut out."""
Library = Literal["cv2", "numpy"]


class BadRequestError(ValueError):
    """What was sent cannot become clips; the message says what came and what was expected."""


class OpenCVMissingError(RuntimeError):
    """Only OpenCV can do what was asked, and cv2 cannot be imported."""


def target_size(height: int, width: int, spec: Resize | None) -> tuple[int, int]:
    """(height, width) after the resize; the arithmetic is mmcv.rescale_size's."""
    match spec:
        case None:
            return height, width
        case FixedResize():
            return spec.height, spec.width
        case KeepRatioResize():
            factor = spec.short / min(height, width)
            if spec.long is not None:
                factor = min(spec.long / max(height, width), factor)
            return int(height * factor + 0.5), int(width * factor + 0.5)


def pixel_library(spec: Resize | None, wanted: Library | None = None) -> Library:
    """The library that does this resize: cv2 where it can be imported, unless numpy is `wanted`.

    Raises:
        OpenCVMissingError: numpy has no such interpolation, or cv2 is wanted and not there.
    """
    if wanted != "numpy" and _find_cv2() is not None:
        return "cv2"
    if wanted == "cv2":
        raise OpenCVMissingError("cv2 cannot be imported; pip install opencv-python-headless")
    if spec is not None and spec.interpolation not in RESAMPLERS:
        raise OpenCVMissingError(
            f"{spec.interpolation} resizing needs OpenCV (numpy does {' and '.join(RESAMPLERS)}); "
            "pip install opencv-python-headless where this runs"
        )
    return "numpy"


def resize(frames: Frames, spec: Resize | None, library: Library | None = None) -> Frames:
    """Frames of the target size, [F, h, w, C]; those that have it already are returned as they are.

    Raises:
        BadRequestError: no uint8 frames of rank 4, or a side that would have no pixel left.
        OpenCVMissingError: see `pixel_library`.
    """
    _check_frames(frames)
    _, from_height, from_width, _ = frames.shape
    height, width = target_size(from_height, from_width, spec)
    if spec is None or (height, width) == (from_height, from_width):
        return frames
    if height < 1 or width < 1:
        raise BadRequestError(
            f"frames of {_wxh(from_height, from_width)} would be resized to {_wxh(height, width)}"
        )
    if pixel_library(spec, library) == "numpy":
        return RESAMPLERS[spec.interpolation](frames, height, width)
    return _resize_with_cv2(frames, height, width, spec.interpolation)


def crop_boxes(height: int, width: int, crop: Crop | None) -> tuple[Box, ...]:
    """Where each crop of a frame of this size lies, in mmaction2's order (see Crop).

    Raises:
        BadRequestError: the frame is smaller than the crop, or larger in both directions where
            three crops are wanted.
    """
    if crop is None:
        return ((0, 0, False),)
    if height < crop.height or width < crop.width:
        raise BadRequestError(
            f"frames of {_wxh(height, width)} after the resize are smaller than the {crop.kind} "
            f"crop of {_wxh(crop.height, crop.width)}"
        )
    spare_height, spare_width = height - crop.height, width - crop.width
    match crop.kind:
        case "center":
            return ((spare_height // 2, spare_width // 2, False),)
        case "three":
            if spare_height and spare_width:
                raise BadRequestError(
                    f"frames of {_wxh(height, width)} after the resize must have the height or "
                    f"the width of the three crops, {_wxh(crop.height, crop.width)}"
                )
            down, right = spare_height // 2, spare_width // 2
            return ((0, 0, False), (2 * down, 2 * right, False), (down, right, False))
        case "ten":
            down, right = spare_height // 4, spare_width // 4
            corners = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
            return tuple(
                (y * down, x * right, flipped) for y, x in corners for flipped in (False, True)
            )


def make_clips(
    frames: Frames,
    frame_index: NDArray[np.integer[Any]],
    contract: Contract,
    library: Library | None = None,
) -> Frames:
    """What the recognizer takes, uint8 [1, views, clip_len, height, width, C], views crop-major.

    Args:
        frames: the distinct decoded frames, uint8 [F, H, W, C].
        frame_index: the row of `frames` at each sampled position, [contract.positions].
        contract: how the recognizer was exported.
        library: see `pixel_library`.

    Raises:
        BadRequestError: frames or index are not what the contract asks for.
        OpenCVMissingError: see `pixel_library`.
    """
    _check_frames(frames, contract.channels)
    _check_index(frame_index, len(frames), contract.positions)
    height, width = target_size(frames.shape[1], frames.shape[2], contract.resize)
    boxes = crop_boxes(height, width, contract.crop)
    resized = resize(frames, contract.resize, library)
    # Mirrored once for all crops: numpy copies pixel by pixel when it walks a row backwards.
    mirrored = resized[:, :, ::-1].copy() if any(flipped for *_, flipped in boxes) else resized

    box_height, box_width = contract.frame_size
    clips = np.empty((len(boxes), contract.positions, *contract.clips_shape[2:]), np.uint8)
    for crops, (top, left, flipped) in zip(clips, boxes, strict=True):
        source = mirrored if flipped else resized
        start = width - left - box_width if flipped else left
        window = source[:, top : top + box_height, start : start + box_width]
        # One copy per position; indexing with the whole array would make a second one.
        for position, row in enumerate(frame_index):
            crops[position] = window[row]
    return clips.reshape(1, *contract.clips_shape)


def _check_frames(frames: NDArray[Any], channels: int | None = None) -> None:
    shape = list(frames.shape)
    if frames.ndim != 4:
        raise BadRequestError(f"frames must be of rank 4, [F, H, W, C]; got shape {shape}")
    if frames.dtype != np.uint8:
        raise BadRequestError(f"frames must be uint8, got {frames.dtype}")
    if 0 in shape:
        raise BadRequestError(f"frames must have at least one frame and pixel; got shape {shape}")
    if channels is not None and shape[3] != channels:
        raise BadRequestError(f"frames must have {channels} channels last; got shape {shape}")


def _check_index(frame_index: NDArray[Any], frames: int, positions: int) -> None:
    if not np.issubdtype(frame_index.dtype, np.integer):
        raise BadRequestError(f"frame_index must hold integers, got {frame_index.dtype}")
    if frame_index.shape != (positions,):
        raise BadRequestError(
            f"frame_index must have one value for each of the {positions} sampled positions; "
            f"got shape {list(frame_index.shape)}"
        )
    outside = np.flatnonzero((frame_index < 0) | (frame_index >= frames))
    if outside.size:
        first = outside[0]
        raise BadRequestError(
            f"frame_index[{first}] is {frame_index[first]}; with {frames} frames each value must "
            f"be from 0 to {frames - 1}"
        )


def _resize_with_cv2(
    frames: Frames, height: int, width: int, interpolation: Interpolation
) -> Frames:
    cv2 = importlib.import_module("cv2")
    code = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }[interpolation]
    out = np.empty((len(frames), height, width, frames.shape[3]), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        # Written through dst, because the array that is returned lacks a channel axis of 1.
        cv2.resize(frame, (width, height), dst=target, interpolation=code)
    return out


def _find_cv2() -> ModuleType | None:
    try:
        return importlib.import_module("cv2")
    except ImportError:
        return None


def _wxh(height: int, width: int) -> str:
    return f"{width} wide x {height} high"
