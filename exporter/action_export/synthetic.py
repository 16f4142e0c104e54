"""Sampling and pixels on lengths and sizes that no proof video has, held to mmaction2's transforms.

Videos of users are longer, shorter, upright and odd where the proof's are not. No file is decoded:
the config's sampler is asked for frame numbers, and what follows its decoder is given noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from action_runtime import sampled
from action_runtime.spec import Contract, SampleFrames
from action_runtime.transforms import BadRequestError, make_clips, pixel_library
from action_runtime.wire import shrink
from numpy.typing import NDArray

from action_export.evaluation import Transform
from action_export.mmaction_compat import quiet
from action_export.preprocess import DECODES, Preprocessing
from action_export.reference import as_clips, build_transform
from action_export.served_views import SAMPLERS
from action_export.types import Check

# (height, width): wide and upright, odd, square, narrow, and small.
_SIZES = (
    *((240, 320), (320, 240), (181, 239), (239, 181)),
    *((128, 128), (97, 293), (293, 97), (45, 61)),
)
_RATES = (7.5, 12.0, 23.976, 25.0, 30000 / 1001, 50.0, 60.0, 120.0)
# Two clips of two frames tell every order of clips, frames and crops apart.
_FEW = SampleFrames(clip_len=2, num_clips=2)


def verify_synthetic(preprocessing: Preprocessing, contract: Contract) -> tuple[Check, ...]:
    """Of the very contract that is published, by what a client and the preprocess model run."""
    with quiet(), np.errstate(all="ignore"):
        numbers = [
            _frames_apart(sampler, contract, total, fps)
            for sampler in map(build_transform, _of(preprocessing, SAMPLERS))
            for total, fps in product(lengths(contract), _rates(contract))
        ]
        pixels = [
            apart for size in _SIZES for apart in _pixels_apart(preprocessing, contract, size)
        ]
    return (
        Check(
            name="sampled frames of other lengths",
            error=max(numbers),
            bound=0.0,
            unit="frames",
            detail=f"{len(numbers)} lengths and rates, 1 to {max(lengths(contract))} frames",
        ),
        Check(
            name="pixels of other sizes",
            error=max(pixels, default=0.0),
            bound=0.0 if pixel_library(contract.resize) == "cv2" else 1.0,
            unit="grey levels",
            detail=f"{len(pixels)} of {2 * len(_SIZES)} sizes, shrunk and whole",
        ),
    )


def lengths(contract: Contract) -> tuple[int, ...]:
    """One frame, fewer than a clip, about as many, and many more, in frames."""
    sampler = contract.sampler
    span = (sampler.clip_len - 1) * getattr(sampler, "frame_interval", 1) + 1
    window = getattr(sampler, "sample_range", span)
    near = {
        n + off for n in (span, window, sampler.clip_len, contract.positions) for off in (-1, 0, 1)
    }
    return tuple(sorted({n for n in near if n > 0} | {1, 2, 3, 7, 10, 59, 250, 299, 1800, 40_000}))


def _rates(contract: Contract) -> tuple[float | None, ...]:
    """Only a sampler with a rate of its own asks for the video's; unknown ones a client refuses."""
    if not getattr(contract.sampler, "target_fps", None) or not contract.reads_fps:
        return (None,)
    return _RATES


def _of(preprocessing: Preprocessing, names: Iterable[str]) -> Iterator[Transform]:
    return (transform for transform in preprocessing.pipeline if transform["type"] in names)


def _frames_apart(sampler: Any, contract: Contract, total: int, fps: float | None) -> float:
    given = {"total_frames": total, "start_index": 0}
    theirs = np.ravel(sampler(given if fps is None else {**given, "avg_fps": fps})["frame_inds"])
    plan = sampled.plan(total, fps, contract)
    ours = plan.frame_numbers[plan.frame_index]
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else math.inf


def _pixels_apart(
    preprocessing: Preprocessing, contract: Contract, size: tuple[int, int]
) -> Iterator[float]:
    """Of frames as they are decoded, and as a client shrinks them; nothing where ours are refused.

    A refusal is no wrong answer: mmaction2 cuts beyond the edge of what is smaller than its crop.
    """
    count, few = _FEW.clip_len * _FEW.num_clips, replace(contract, sampler=_FEW)
    noise = np.random.default_rng(size).integers(
        0, 256, (count, *size, contract.channels), np.uint8
    )
    index = np.arange(count, dtype=np.int32)
    try:
        ours = [make_clips(frames, index, few) for frames in (noise, shrink(noise, few.resize))]
    except BadRequestError:
        return
    theirs = _mmactions(preprocessing, noise)
    for clips in ours:
        if theirs is None or clips.shape != theirs.shape:
            yield math.inf
        else:
            yield float((np.maximum(clips, theirs) - np.minimum(clips, theirs)).max())


def _mmactions(preprocessing: Preprocessing, frames: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The clips of what follows the decoder; None where mmaction2 refuses the frames."""
    names = [str(transform["type"]) for transform in preprocessing.pipeline]
    after = preprocessing.pipeline[
        max(names.index(name) for name in names if name in DECODES) + 1 :
    ]
    results: dict[str, Any] = {
        "imgs": list(frames),
        "img_shape": frames.shape[1:3],
        "original_shape": frames.shape[1:3],
        "modality": preprocessing.modality,
        "num_clips": _FEW.num_clips,
        "clip_len": _FEW.clip_len,
    }
    for transform in after:
        if transform["type"] != "PackActionInputs":
            try:
                results = build_transform(transform)(results)
            except AssertionError:  # of the crops
                return None
    return as_clips(results["imgs"], replace(preprocessing, sampler=_FEW))
