"""What a client makes of the proof videos, held to what mmaction2 made of the same files.

The client's own code samples, decodes and shrinks them (`action_runtime.sampled`), so that nothing
can differ between a file and the graph that the proof has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from action_runtime import sampled, transforms, video
from action_runtime.limits import DEFAULT, Limits
from action_runtime.sampled import SampledFrames
from action_runtime.spec import Contract
from action_runtime.transforms import make_clips, pixel_library
from action_runtime.video import Header
from action_runtime.video_file import source
from numpy.typing import NDArray

from action_export.errors import DependencyError, VideoError
from action_export.reference import WHOLE_FRAMES, Reference, refused
from action_export.types import Check

# Of a picture that FFmpeg 4.1 and later ones round differently, on average over its pixels: nothing
# that is seen to be another picture. MPEG-4 measured below 0.001, chroma of odd heights up to 0.35.
_ROUNDED = 0.5
# What that may add to the difference of the scores, as a share of their spread: ten times the
# relative error of the input, as is allowed for JPEG.
ROUNDED_BOUND = 10 * _ROUNDED / 255


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClientPath:
    """checks: frame numbers, decoded frames and clips, each the worst of all videos.

    rounded: the clips of videos that this FFmpeg rounds otherwise than decord's, and what they must
        score within a bound that ROUNDED_BOUND widens.
    """

    checks: tuple[Check, ...]
    rounded: tuple[tuple[NDArray[np.uint8], Reference], ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.rounded:
            return ()
        names = ", ".join(reference.video.name for _, reference in self.rounded)
        return (
            f"a client's frames of {names} are not decord's to the byte, because the FFmpeg in "
            "decord is older and rounds such files otherwise: what it costs is in the checks",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Differences:
    """Of one video: in frame numbers, and in grey levels before and after all transforms."""

    numbers: float
    decoded: float
    clips: float


def verify_client_path(references: tuple[Reference, ...], contract: Contract) -> ClientPath:
    """Nothing for optical flow, which is in no video file.

    Raises:
        VideoError: the client refuses a video that mmaction2 reads.
        DependencyError: what the contract's decoder needs is not here.
    """
    if contract.takes_flow:
        return ClientPath(checks=())
    exact: list[_Differences] = []
    rounded: list[_Differences] = []
    clips: list[tuple[NDArray[np.uint8], Reference]] = []
    for reference in references:
        # a mean, because one pixel may be far off where a picture is the same to the eye
        followed = contract.decoder != "decord" or _examine(reference.video).as_decord
        found, made = _compare(reference, contract, np.max if followed else np.mean)
        (exact if followed else rounded).append(found)
        if not followed:
            clips.append((made, reference))
    unequal = 0.0 if pixel_library(contract.resize) == "cv2" else 1.0
    every = exact + rounded
    checks = [_check("sampled frames", "frames", 0.0, [one.numbers for one in every])]
    if exact:
        checks.append(_check("decoded frames", "grey levels", 0.0, [one.decoded for one in exact]))
        checks.append(_check("clips", "grey levels", unequal, [one.clips for one in exact]))
    if rounded:
        means = [one.decoded for one in rounded]
        checks.append(_check("rounded frames, mean", "grey levels", _ROUNDED, means))
    return ClientPath(checks=tuple(checks), rounded=tuple(clips))


def hint(contract: Contract) -> str:
    """What the owner of a config can do where the client differs."""
    if contract.decoder != "decord":
        return "nothing was published; please report the config, these figures and the video"
    return (
        "nothing was published; decord's own random access errs in open GOPs, MPEG-TS, MPEG-PS and "
        "AVI with B-frames, and it counts frames that an edit list hides: prove on other videos "
        "(--videos), or on what ffmpeg -i IN -c:v libx264 OUT.mp4 makes of this one; please report "
        "the config, these figures and the video where that does not help"
    )


def _check(
    what: str, unit: Literal["frames", "grey levels"], bound: float, errors: list[float]
) -> Check:
    return Check(
        name=f"client's {what}",
        error=max(errors),
        bound=bound,
        unit=unit,
        detail=f"{len(errors)} videos",
    )


def _examine(path: Path) -> Header:
    try:
        with source(path, DEFAULT) as file:
            return video.examine(file)
    except video.VideoError as exc:
        raise refused(exc) from exc


def _compare(
    reference: Reference, contract: Contract, measure: Callable[[NDArray[np.uint8]], Any]
) -> tuple[_Differences, NDArray[np.uint8]]:
    """How far the client is from the reference, and the clips that it leads to.

    measure: of the differences within one decoded frame.
    """
    decoded = _sample(reference.video, contract, full_size=True, limits=WHOLE_FRAMES)
    assert decoded.frame_numbers is not None
    numbers = _distance(decoded.frame_numbers[decoded.frame_index], reference.sampled)
    pixels = math.inf
    if decoded.frames.shape == reference.frames.shape:
        # frame by frame, so that only one is held twice
        pairs = zip(decoded.frames, reference.frames, strict=True)
        pixels = max(float(measure(np.maximum(a, b) - np.minimum(a, b))) for a, b in pairs)
    del decoded
    sent = _sample(reference.video, contract)
    clips = make_clips(sent.frames, sent.frame_index, contract)
    return _Differences(
        numbers=numbers, decoded=pixels, clips=_distance(clips, reference.clips)
    ), clips


def _distance(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    return float((np.maximum(ours, theirs) - np.minimum(ours, theirs)).max())


def _sample(
    path: Path, contract: Contract, *, full_size: bool = False, limits: Limits = DEFAULT
) -> SampledFrames:
    try:
        return sampled.sample_file(path, contract, full_size=full_size, limits=limits)
    except video.VideoError as exc:
        raise refused(exc) from exc
    except sampled.SamplingError as exc:
        raise VideoError(
            f"a client cannot sample {path}: {exc.message}",
            hint="prove on other videos with --videos",
        ) from exc
    except transforms.OpenCVMissingError as exc:
        raise DependencyError(str(exc), hint="pip install opencv-python-headless") from exc
