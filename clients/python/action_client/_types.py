"""What goes in and comes out of the client: plans, predictions, classifications."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""Pixels [F, H, W, C]: RGB, or x and y of optical flow."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Which frames of a video a model needs, and where each sampled position finds its frame.

    frame_numbers: int32, ascending, each frame once; 0 is the first frame of the video.
    frame_index: int32 [positions of the contract]; row of `frame_numbers` for each position.
    """

    frame_numbers: NDArray[np.int32]
    frame_index: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledFrames:
    """What is sent: the distinct frames, uint8 [F, H, W, C], and the int32 index into them."""

    frames: Frames
    frame_index: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One class: its label (its number as text where the model has no labels), place and score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one classification went, in milliseconds.

    prepare_ms: reading and decoding the file, resizing, and packing the request.
    exchange_ms: from sending the request to the answer, retries included.
    """

    prepare_ms: float
    exchange_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classification:
    """The answer for one video.

    scores: float32 [classes], as the server sent them.
    top: the best classes, best first; equal scores in the order of their class index.
    """

    scores: NDArray[np.float32]
    top: tuple[Prediction, ...]
    timings: Timings
