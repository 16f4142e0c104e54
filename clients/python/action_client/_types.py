"""What goes in and comes out of the client: frames, predictions, classifications."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from action_runtime.sampled import SampledFrames as SampledFrames
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""Pixels [F, H, W, C]: RGB, or x and y of optical flow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One class: its label (its number as text where the model has no labels), place and score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """A request that is ready to be sent; `Timings` says what its other fields mean.

    message: a serialised ModelInferRequest.
    """

    message: bytes
    decode_ms: float
    resize_ms: float
    encode_ms: float
    wire_bytes: int

    def timings(self, *, exchange_ms: float) -> Timings:
        return Timings(
            decode_ms=self.decode_ms,
            resize_ms=self.resize_ms,
            encode_ms=self.encode_ms,
            exchange_ms=exchange_ms,
            wire_bytes=self.wire_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one classification went, in milliseconds, and what was sent.

    decode_ms: reading and decoding the file; of frames in memory, picking those that are needed.
    resize_ms: resizing frames that are larger than the model takes.
    encode_ms: packing the frames into tensors.
    exchange_ms: from sending the request to the answer, retries included.
    wire_bytes: size of the tensors that were sent.
    """

    decode_ms: float
    resize_ms: float
    encode_ms: float
    exchange_ms: float
    wire_bytes: int

    @property
    def prepare_ms(self) -> float:
        """Everything before the request was sent."""
        return self.decode_ms + self.resize_ms + self.encode_ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classification:
    """The answer for one video.

    scores: float32 [classes], as the server sent them.
    top: the best classes, best first; equal scores in the order of their class index.
    """

    scores: NDArray[np.float32]
    top: tuple[Prediction, ...]
    timings: Timings
