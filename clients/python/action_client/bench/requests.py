"""The requests that a benchmark makes: frames prepared once, or a file decoded each time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from action_runtime.limits import DEFAULT, Limits
from action_runtime.spec import Contract

from .. import _request, _response
from .._client import VideoClient
from .._transport import Connection
from .._types import Frames, Request, SampledFrames
from .load import Send

# A clip of Kinetics as mmaction2's configs take it: 10 s, its short side scaled to 256.
_DRAWN_SIZE = (256, 340)
_DRAWN_FRAMES, _DRAWN_FPS = 300, 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The model that is asked. model_version "" leaves the choice to the server.

    parts: its name and those of its steps.
    """

    connection: Connection
    model: str
    model_version: str
    contract: Contract
    parts: tuple[str, ...]


def sampled_from(video: Path | None, contract: Contract, limits: Limits = DEFAULT) -> SampledFrames:
    """What is sent for a video file, or for a clip that is drawn where there is none.

    Raises:
        VideoError: the file cannot be decoded.
        InvalidRequestError: the model cannot take a video file.
    """
    if video is not None:
        return _request.sample_file(video, contract, limits)
    plan = _request.plan(_DRAWN_FRAMES, _DRAWN_FPS, contract)
    frames = _drawn(plan.frame_numbers.tolist(), contract.channels)
    return _request.take_sampled(frames, plan.frame_index, contract)


def sending(target: Target, request: Request) -> Send:
    """Sends the same request each time: what remains is the server, and the way there and back."""

    def send() -> dict[str, float]:
        started = time.perf_counter()
        result = target.connection.infer(target.model, request.message)
        timers = {"exchange_ms": (time.perf_counter() - started) * 1e3}
        _response.scores_of(result, target.contract)
        return timers

    return send


def decoding(client: VideoClient, video: Path) -> Send:
    """Decodes the file each time, as `VideoClient.classify` does: from a file to scores."""
    return lambda: asdict(client.classify(video).timings)


def _drawn(numbers: list[int], channels: int) -> Frames:
    """uint8 [F, H, W, C] of these frames of a clip: a gradient that drifts under noise.

    Noise, because a server or a network may compress.
    """
    height, width = _DRAWN_SIZE
    noise = np.random.default_rng(0).integers(0, 32, (height, width, channels), np.uint8)
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    gradient = (x // 2 + y // 2)[..., None] + noise
    return np.stack(
        [np.roll(gradient, number, axis=1) + np.uint8(number % 64) for number in numbers]
    )
