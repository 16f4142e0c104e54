"""Frames to clips: resized, cropped and arranged as mmaction2's Resize, crops and FormatShape do.

Frames are uint8 [F, H, W, C]. With OpenCV every byte equals mmaction2's; without it, bilinear
frames are within one grey level and nearest ones are equal.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
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
    height, width = target_size(frames.shape[1], frames.shape[2], spec)
    _check_size(frames, height, width)
    if spec is None or (height, width) == frames.shape[1:3]:
        return frames
    if pixel_library(spec, library) == "numpy":
        return RESAMPLERS[spec.interpolation](frames, height, width)
    out = np.empty((len(frames), height, width, frames.shape[3]), np.uint8)
    resize_to = _cv2_resizer(height, width, spec.interpolation)
    for frame, target in zip(frames, out, strict=True):
        resize_to(frame, target)
    return out


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
    out: Frames | None = None,
) -> Frames:
    """What the recognizer takes, uint8 [1, views, clip_len, height, width, C], views crop-major.

    Args:
        frames: the distinct decoded frames, uint8 [F, H, W, C].
        frame_index: the row of `frames` at each sampled position, [contract.positions].
        contract: how the recognizer was exported.
        library: see `pixel_library`.
        out: where the clips go, of their shape and C-contiguous; it is returned. None for a new
            array.

    Raises:
        BadRequestError: frames or index are not what the contract asks for.
        OpenCVMissingError: see `pixel_library`.
    """
    _check_frames(frames, contract.channels)
    _check_index(frame_index, len(frames), contract.positions)
    height, width = target_size(frames.shape[1], frames.shape[2], contract.resize)
    boxes = crop_boxes(height, width, contract.crop)
    _check_size(frames, height, width)
    clips = np.empty((1, *contract.clips_shape), np.uint8) if out is None else out
    crops = clips.reshape(len(boxes), contract.positions, *contract.clips_shape[2:])
    box_height, box_width = contract.frame_size
    mirror = _mirror_of(pixel_library(None, library))
    rows, which = np.unique(frame_index, return_inverse=True)
    resized = _each_resized(frames, rows, contract.resize, library)
    # Frame by frame: what was just resized is cut while the processor's cache holds it.
    for number, frame in enumerate(resized):
        (positions,) = np.nonzero(which == number)
        for crop, (top, left, flipped) in zip(crops, boxes, strict=True):
            window = frame[top : top + box_height, left : left + box_width]
            for position in positions:
                if flipped:
                    mirror(window, crop[position])
                else:
                    crop[position] = window
    return clips


def _each_resized(
    frames: Frames, rows: NDArray[Any], spec: Resize | None, library: Library | None
) -> Iterator[Frames]:
    """These frames, resized, [h, w, C]; each is valid until the next one is asked for."""
    height, width = target_size(frames.shape[1], frames.shape[2], spec)
    if spec is None or (height, width) == frames.shape[1:3]:
        yield from (frames[row] for row in rows)
    elif pixel_library(spec, library) == "numpy":
        every = frames if len(rows) == len(frames) else frames[rows]
        yield from RESAMPLERS[spec.interpolation](every, height, width)
    else:
        resize_to = _cv2_resizer(height, width, spec.interpolation)
        target = np.empty((height, width, frames.shape[3]), np.uint8)
        for row in rows:
            resize_to(frames[row], target)
            yield target


def _check_size(frames: Frames, height: int, width: int) -> None:
    """Of the frames after their resize. Raises BadRequestError if a side has no pixel left."""
    from_height, from_width = frames.shape[1:3]
    if height < 1 or width < 1:
        raise BadRequestError(
            f"frames of {_wxh(from_height, from_width)} would be resized to {_wxh(height, width)}"
        )


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


def _cv2_resizer(
    height: int, width: int, interpolation: Interpolation
) -> Callable[[Frames, Frames], None]:
    """What resizes its first argument into its second, which is contiguous."""
    cv2 = importlib.import_module("cv2")
    code = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }[interpolation]

    def resize_to(frame: Frames, target: Frames) -> None:
        # Written through dst, because the array that is returned lacks a channel axis of 1.
        cv2.resize(frame, (width, height), dst=target, interpolation=code)

    return resize_to


def _mirror_of(library: Library) -> Callable[[Frames, Frames], None]:
    """What writes a mirrored window into its second argument, left to right."""
    if library == "cv2":
        flip = importlib.import_module("cv2").flip  # takes no longer than a copy does
        return lambda window, target: flip(window, 1, dst=target)

    def by_channel(window: Frames, target: Frames) -> None:
        # numpy walks a row of pixels backwards three times as slowly
        for channel in range(window.shape[2]):
            target[:, :, channel] = window[:, ::-1, channel]

    return by_channel


def _find_cv2() -> ModuleType | None:
    try:
        return importlib.import_module("cv2")
    except ImportError:
        return None


def _wxh(height: int, width: int) -> str:
    return f"{width} wide x {height} high"
