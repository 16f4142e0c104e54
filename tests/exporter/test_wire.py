"""JPEG on the wire: what is refused, what it may cost, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from action_export import api, example, manifest, repository
from action_export.errors import ParityError, UnsupportedError
from action_export.image import image_notes
from action_export.types import ExportRequest, Tensors
from action_export.wire import (
    bound_of,
    check_wire,
    coarsest_step,
    has_full_chroma,
    pack_as_stated,
    wire_notes,
    wire_of,
)
from action_runtime import jpeg
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
    assert wire_of(request(wire="jpeg"), "RGB") == Jpeg(quality=90, chroma="full")
    assert wire_of(request(wire="jpeg", jpeg_quality=80), "RGB") == Jpeg(quality=80, chroma="full")


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


def test_only_of_jpeg_is_said_that_it_is_lossy() -> None:
    assert wire_notes(CONTRACT) == ()
    (lossy,) = wire_notes(LOSSY)
    assert "JPEG of quality 90, which is lossy" in lossy


PIXELS = np.zeros((2, 60, 80, 3), np.uint8)


@pytest.mark.parametrize("chroma", ["halved", "full"])
def test_what_a_client_packs_is_what_the_contract_says(chroma: Any) -> None:
    contract = replace(LOSSY, wire=Jpeg(quality=90, chroma=chroma))
    files = pack_as_stated(PIXELS, contract)
    assert [coarsest_step(file) for file in files] == [24, 24]
    assert [has_full_chroma(file) for file in files] == [chroma == "full"] * 2


@pytest.mark.parametrize("other", [Jpeg(quality=60), Jpeg(quality=90, chroma="full")])
def test_an_encoder_of_another_quality_or_chroma_is_refused_though_its_bound_is_wide(
    other: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = jpeg.encode
    monkeypatch.setattr(jpeg, "encode", lambda frames, how: encode(frames, other))
    with pytest.raises(ParityError, match=r"the contract's quality 90 has \(24, False\)"):
        pack_as_stated(PIXELS, LOSSY)


def test_sixteen_bit_tables_are_read() -> None:
    table = bytes([0x10]) + (1).to_bytes(2, "big") * 63 + (600).to_bytes(2, "big")
    file = b"\xff\xd8\xff\xdb" + (2 + len(table)).to_bytes(2, "big") + table + b"\xff\xda"
    assert coarsest_step(file) == 600


BICUBIC = replace(CONTRACT, resize=KeepRatioResize(short=48, interpolation="bicubic"))


@pytest.mark.parametrize(
    ("contract", "needed"), [(CONTRACT, False), (LOSSY, True), (BICUBIC, True)]
)
def test_an_image_is_written_where_the_stock_one_is_not_enough(
    contract: Contract, needed: bool, tmp_path: Path
) -> None:
    plan = repository.plan(
        tmp_path / "repo",
        repository.check_name("moves"),
        contract=contract,
        tensors=Tensors.of(contract, max_batch_size=2),
        image="24.12-py3",
    )
    path = "moves_preprocess/1/Dockerfile"
    assert (path in plan.texts) == needed
    notes = image_notes(contract, path)
    assert bool(notes) == needed
    if needed:
        assert notes[0].endswith(f"docker build -t tritonserver-opencv - < {path}")
        *_, base, install = plan.texts[path].splitlines()
        assert base == "FROM nvcr.io/nvidia/tritonserver:24.12-py3"
        # with a numpy that the Python backend can read
        assert install.endswith('"opencv-python-headless==4.11.0.86" "numpy<2"')


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


def test_every_bundled_clip_is_proved_as_jpeg_unless_videos_are_named(tmp_path: Path) -> None:
    """What JPEG costs differs a hundredfold between them: two may pass where a third would not."""
    asked = replace(request(wire="jpeg", proof="graph"), triton_repo=tmp_path / "repo")
    result = api.export(asked)
    check = {check.name: check for check in result.checks}["JPEG"]
    assert len(example.CLIPS) == 5
    assert check.detail == "5 videos"
    assert 1e-3 < check.error < check.bound < 0.12
    proved = {video["file"] for video in result.manifest["proof"]["videos"]}
    assert proved == {clip.name for clip in example.CLIPS}


def test_the_manifests_command_repeats_it() -> None:
    words = manifest.command(request(wire="jpeg", jpeg_quality=90))
    assert "--wire jpeg --jpeg-quality 90" in words
    assert "--wire" not in manifest.command(request())
