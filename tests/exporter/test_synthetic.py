"""What no proof video shows, its length or its shape, is held to mmaction2's own transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_export import api
from action_export.errors import ParityError
from action_export.preprocess import Preprocessing, derive
from action_export.source import RecognizerConfig
from action_export.synthetic import lengths, verify_synthetic
from action_export.types import Check, ExportRequest, Modality, ViewOptions
from action_runtime import sampling, transforms, wire
from action_runtime.spec import Contract, KeepRatioResize
from support.tiny import (
    MODEL_2D,
    MODEL_3D,
    MODEL_FLOW_2D,
    PIPELINE_2D,
    PIPELINE_3D,
    PIPELINE_FLOW_2D,
    VIDEOS,
    make,
    with_step,
)

SAMPLE, DECODE, RESIZE, CROP = 1, 2, 3, 4
LENGTHS, SIZES = "sampled frames of other lengths", "pixels of other sizes"

Pipeline = Sequence[dict[str, Any]]


def sampler(**arguments: Any) -> Pipeline:
    sampling_step = dict(test_mode=True, **arguments)
    return [*PIPELINE_3D[:SAMPLE], sampling_step, *PIPELINE_3D[DECODE:]]


def resized(**arguments: Any) -> Pipeline:
    return with_step(PIPELINE_3D, RESIZE, **arguments)


CASES: dict[str, tuple[dict[str, Any], Pipeline, Modality]] = {
    "three crops": (MODEL_3D, PIPELINE_3D, "RGB"),
    "center crop": (MODEL_2D, PIPELINE_2D, "RGB"),
    "ten crops": (MODEL_2D, with_step(PIPELINE_2D, CROP, type="TenCrop"), "RGB"),
    "stacked flow": (MODEL_FLOW_2D, PIPELINE_FLOW_2D, "Flow"),
    "a rate": (
        MODEL_3D,
        sampler(type="SampleFrames", clip_len=4, frame_interval=2, num_clips=3, target_fps=24),
        "RGB",
    ),
    "twice, last repeated": (
        MODEL_3D,
        sampler(
            type="SampleFrames",
            clip_len=4,
            frame_interval=8,
            num_clips=3,
            twice_sample=True,
            out_of_bound_opt="repeat_last",
        ),
        "RGB",
    ),
    "dense": (
        MODEL_3D,
        sampler(type="DenseSampleFrames", clip_len=4, frame_interval=4, num_clips=2),
        "RGB",
    ),
    "uniform": (MODEL_3D, sampler(type="UniformSample", clip_len=5, num_clips=3), "RGB"),
    "a long side": (MODEL_3D, resized(scale=(48, 32)), "RGB"),
    "a fixed size": (MODEL_3D, resized(scale=(48, 32), keep_ratio=False), "RGB"),
    "bicubic": (MODEL_3D, resized(interpolation="bicubic"), "RGB"),
    "frame files": (
        MODEL_3D,
        [PIPELINE_3D[SAMPLE], dict(type="RawFrameDecode"), *PIPELINE_3D[RESIZE:]],
        "RGB",
    ),
}


def read(case: str) -> tuple[Preprocessing, Contract]:
    model, pipeline, modality = CASES[case]
    config = RecognizerConfig(
        name="tiny",
        path=Path("tiny.py"),
        sha256="",
        model=model,
        pipeline=tuple(pipeline),
        modality=modality,
        pipeline_key="test_pipeline",
    )
    preprocessing = derive(config, ViewOptions())
    return preprocessing, preprocessing.contract(config, labels=(), provenance={})


def checked(case: str) -> dict[str, Check]:
    return {check.name: check for check in verify_synthetic(*read(case))}


@pytest.mark.parametrize("case", CASES)
def test_what_is_served_equals_mmaction2_on_every_length_and_size(case: str) -> None:
    checks = checked(case)
    assert {name: (check.error, check.bound) for name, check in checks.items()} == {
        LENGTHS: (0, 0),
        SIZES: (0, 0),
    }
    seen = int(checks[SIZES].detail.partition(" ")[0])
    # where a long side is bounded, narrow frames are smaller than their crop, and refused
    assert seen == 16 or (case == "a long side" and seen >= 8)


def test_lengths_lie_around_what_the_sampler_covers() -> None:
    _, contract = read("three crops")  # 4 frames, 8 apart: 25 frames
    assert {1, 3, 4, 5, 24, 25, 26, 40_000} <= set(lengths(contract))


def wrong_upright(height: int, width: int, spec: Any) -> tuple[int, int]:
    """Rounds down where the frame is higher than it is wide."""
    if isinstance(spec, KeepRatioResize) and height > width:
        factor = spec.short / width
        return int(height * factor), spec.short
    return TARGET_SIZE(height, width, spec)


TARGET_SIZE = transforms.target_size


def test_a_wrong_rounding_of_upright_frames_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "target_size", wrong_upright)
    checks = checked("ten crops")
    assert not checks[SIZES].passed
    assert checks[LENGTHS].passed


def test_upright_crops_in_another_order_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = transforms.crop_boxes

    def wrong(height: int, width: int, crop: Any) -> Any:
        boxes = right(height, width, crop)
        return boxes if height <= width else boxes[::-1]

    monkeypatch.setattr(transforms, "crop_boxes", wrong)
    assert not checked("three crops")[SIZES].passed


def test_a_shrinking_that_errs_on_odd_sizes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = wire.shrink

    def wrong(frames: Any, resize: Any) -> Any:
        return right(frames[:, :-1] if frames.shape[1] % 2 else frames, resize)

    monkeypatch.setattr("action_export.synthetic.shrink", wrong)
    assert not checked("center crop")[SIZES].passed


@pytest.mark.parametrize(
    ("case", "name", "wrong"),
    [
        # short videos: held at the end in place of starting anew
        ("three crops", "_within", lambda numbers, total, rule: np.minimum(numbers, total - 1)),
        # long ones: beyond 32,767
        ("three crops", "_as_indices", lambda numbers: numbers.astype(np.int16).ravel()),
        ("a rate", "_frame_rate", lambda fps: round(fps)),
    ],
    ids=["short", "long", "rate"],
)
def test_a_wrong_sampling_that_no_proof_video_shows_is_caught(
    case: str, name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, name, wrong)
    checks = checked(case)
    assert not checks[LENGTHS].passed
    assert checks[SIZES].passed


def test_an_export_with_such_a_defect_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the proof's own videos, which are wide, all of it is right."""
    tiny = make(tmp_path, MODEL_2D, PIPELINE_2D)
    monkeypatch.setattr(transforms, "target_size", wrong_upright)
    request = ExportRequest(
        triton_repo=tmp_path / "repo",
        config=str(tiny.config_file),
        checkpoint=tiny.checkpoint,
        name="tiny",
        videos=tuple(VIDEOS),
        proof="graph",
    )
    with pytest.raises(ParityError, match=f"differs from mmaction2: {SIZES} by"):
        api.export(request)
    assert not (tmp_path / "repo" / "tiny").exists()
