"""Nearest and bilinear resizing in numpy, with the arithmetic of OpenCV's resize for uint8.

Written after opencv/modules/imgproc/src/resize.cpp: pixel centres lie at half integers, borders
repeat, and bilinear weights are fixed-point numbers of 11 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Resampler = Callable[[Frames, int, int], Frames]

_WEIGHT_ONE = 2048  # OpenCV's INTER_RESIZE_COEF_SCALE


def nearest(frames: Frames, height: int, width: int) -> Frames:
    """uint8 [F, H, W, C] to [F, height, width, C], equal to cv2.INTER_NEAREST."""
    rows = _nearest_sources(frames.shape[1], height)
    columns = _nearest_sources(frames.shape[2], width)
    return frames[:, rows[:, None], columns]


def bilinear(frames: Frames, height: int, width: int) -> Frames:
    """uint8 [F, H, W, C] to [F, height, width, C], within one grey level of cv2.INTER_LINEAR.

    With 1, 3 or 4 channels no byte differed from OpenCV 4.11's x86 build; its ARM builds may round
    otherwise.
    """
    rows, row_weights = _bilinear_sources(frames.shape[1], height)
    columns, column_weights = _bilinear_sources(frames.shape[2], width)
    used, lines = np.unique(rows, return_inverse=True)
    upper, lower = lines.reshape(rows.shape)
    out = np.empty((len(frames), height, width, frames.shape[3]), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        across = _blend_columns(frame[used], columns, column_weights)
        target[...] = _blend_rows(across[upper], across[lower], row_weights)
    return out


RESAMPLERS: Mapping[str, Resampler] = {"nearest": nearest, "bilinear": bilinear}
"""The interpolations that need no OpenCV, by their name in the contract."""


def _scale(size: int, target: int) -> float:
    # Not size / target, which can differ in the last bit and then picks another pixel.
    return 1.0 / (target / size)


def _nearest_sources(size: int, target: int) -> NDArray[np.intp]:
    sources: NDArray[np.float64] = np.floor(np.arange(target) * _scale(size, target))
    return sources.astype(np.intp).clip(0, size - 1)


def _bilinear_sources(size: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """The two source pixels of each target pixel, and their weights: both [2, target]."""
    centres = ((np.arange(target) + 0.5) * _scale(size, target) - 0.5).astype(np.float32)
    low = np.floor(centres)
    share = centres - low
    sources = np.stack([low, low + 1]).astype(np.intp).clip(0, size - 1)
    weights = np.rint(np.stack([1 - share, share]) * _WEIGHT_ONE).astype(np.int32)
    return sources, weights


def _blend_columns(
    lines: Frames, columns: NDArray[np.intp], weights: NDArray[np.int32]
) -> NDArray[np.int32]:
    """uint8 [lines, W, C] to [lines, width, C], a grey level being 2048 / 16 = 128."""
    left, right = (lines.take(source, axis=1) for source in columns)
    blended: NDArray[np.int32] = left * weights[0][:, None]
    blended += right * weights[1][:, None]
    blended >>= 4
    return blended


def _blend_rows(
    upper: NDArray[np.int32], lower: NDArray[np.int32], weights: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Shifts like OpenCV's 16-bit lanes: each product loses its low bits before they are added."""
    upper *= weights[0][:, None, None]
    lower *= weights[1][:, None, None]
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper
