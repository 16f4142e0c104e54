"""The pipeline that is served: the config's with the views that are asked for, from local files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from action_export.evaluation import Transform
from action_export.types import ViewOptions

INITS = ("DecordInit", "PyAVInit", "OpenCVInit")
"""What opens a video."""
SAMPLERS = ("SampleFrames", "DenseSampleFrames", "UniformSample")
CROPS: Mapping[str, Literal["center", "three", "ten"]] = {
    "CenterCrop": "center",
    "ThreeCrop": "three",
    "TenCrop": "ten",
}
_TRANSFORM_OF = {kind: name for name, kind in CROPS.items()}
# Of the transforms that open a video: what does not say where it lies.
_OPENING = ("type", "num_threads", "mode")


def from_disk(transform: Transform) -> Transform:
    """Opens local files, whatever storage the config reads its dataset from.

    The served model gets frames and never opens a file, and the proof's videos are local: petrel or
    memcached need not be installed, and a `path_mapping` would lead elsewhere.
    """
    if transform["type"] not in INITS:
        return transform
    return {key: value for key, value in transform.items() if key in _OPENING}


def with_views(transform: Transform, views: ViewOptions) -> Transform:
    name = str(transform.get("type"))
    if name in SAMPLERS and views.num_clips is not None:
        return _with_clips(transform, views.num_clips)
    if views.crops != "config" and name in CROPS:
        return {**transform, "type": _TRANSFORM_OF[views.crops]}
    return transform


def _with_clips(sampler: Transform, num_clips: int) -> Transform:
    """`num_clips` clips in all, so no second pass and one position of a dense sampler."""
    if _clips(sampler) == num_clips:
        return sampler
    single: dict[str, dict[str, Any]] = {
        "SampleFrames": {"twice_sample": False},
        "DenseSampleFrames": {"num_sample_positions": 1},
    }
    return {**sampler, "num_clips": num_clips, **single.get(str(sampler["type"]), {})}


def views_of(pipeline: tuple[Transform, ...]) -> dict[str, int | str]:
    """Sampled clips and crops of a pipeline, to compare and to record."""
    views: dict[str, int | str] = {"num_clips": 1, "crops": "none"}
    for transform in pipeline:
        name = transform.get("type")
        if name in SAMPLERS:
            views["num_clips"] = _clips(transform)
        elif name in CROPS:
            views["crops"] = CROPS[str(name)]
    return views


def _clips(sampler: Transform) -> int:
    """Clips that a sampler takes in all."""
    clips = int(sampler.get("num_clips", 1))
    match sampler["type"]:
        case "SampleFrames":
            return clips * (2 if sampler.get("twice_sample") else 1)
        case "DenseSampleFrames":
            return clips * int(sampler.get("num_sample_positions", 10))
        case _:
            return clips
