"""JPEG on the wire: what is refused, what it may cost, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from action_export import manifest, repository
from action_export.errors import UnsupportedError
from action_export.types import ExportRequest, Tensors
from action_export.wire import bound_of, check_wire, wire_notes, wire_of
from action_runtime.spec import Contract, Crop, Jpeg, KeepRatioResize, SampleFrames

CONTRACT = Contract(
    sampler=SampleFrames(clip_len=4),
    resize=KeepRatioResize(short=48),
    crop=Crop(kind="center", width=48, height=48),
    classes=3,
    average="prob",
)
LOSSY = replace(CONTRACT, wire=Jpeg(quality=90))


def request(**fields: Any) -> ExportRequest:
    return ExportRequest(triton_repo=Path("repo"), **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"jpeg_quality": 90}, "--jpeg-quality 90 is for --wire jpeg"),
        ({"wire": "jpeg", "jpeg_quality": 74}, "from 75 to 100 here, and is not 74"),
        ({"wire": "jpeg", "jpeg_quality": 101}, "from 75 to 100 here, and is not 101"),
    ],
)
def test_a_quality_that_means_nothing_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        check_wire(request(**fields))


def test_jpeg_of_optical_flow_is_refused_with_a_hint() -> None:
    with pytest.raises(UnsupportedError, match="the model takes optical flow") as caught:
        wire_of(request(wire="jpeg"), "Flow")
    assert caught.value.hint == "--wire raw"


def test_what_is_asked_for_is_what_the_contract_says() -> None:
    assert wire_of(request(), "RGB") is None
    assert wire_of(request(), "Flow") is None
    assert wire_of(request(wire="jpeg"), "RGB") == Jpeg(quality=95)
    assert wire_of(request(wire="jpeg", jpeg_quality=80), "RGB") == Jpeg(quality=80)


def steps_of(quality: int) -> set[int]:
    """Of a file that OpenCV writes at this quality: its quantisation tables (ITU-T T.81, B.2.4)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    file = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), options)[1].tobytes()
    steps, at = set[int](), file.find(b"\xff\xdb")
    while at >= 0:
        steps |= set(file[at + 5 : at + 69])
        at = file.find(b"\xff\xdb", at + 69)
    return steps


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 90, 95, 99, 100])
def test_the_bound_is_that_of_the_largest_step_in_the_files(quality: int) -> None:
    assert bound_of(Jpeg(quality=quality)) == 10 * max(steps_of(quality)) / 2 / 1024


def test_pixels_may_cost_nothing() -> None:
    assert bound_of(None) == 0


def test_only_of_jpeg_is_said_that_it_is_lossy_and_needs_opencv() -> None:
    assert wire_notes(CONTRACT) == ()
    lossy, opencv = wire_notes(LOSSY)
    assert "JPEG of quality 90, which is lossy" in lossy
    assert "pip install opencv-python-headless" in opencv


def test_the_configs_name_the_tensor_of_files_and_its_type(tmp_path: Path) -> None:
    plan = repository.plan(
        tmp_path / "repo",
        repository.check_name("moves"),
        contract=LOSSY,
        tensors=Tensors.of(LOSSY, max_batch_size=2),
    )
    for model in ("moves", "moves_preprocess"):
        text = plan.texts[f"{model}/config.pbtxt"]
        assert 'name: "frames_jpeg"\n    data_type: TYPE_STRING\n    dims: [ -1 ]' in text
        assert '"frames"' not in text


def test_the_manifests_command_repeats_it() -> None:
    words = manifest.command(request(wire="jpeg", jpeg_quality=90))
    assert "--wire jpeg --jpeg-quality 90" in words
    assert "--wire" not in manifest.command(request())
