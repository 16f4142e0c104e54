"""A server with one published model, and a video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from action_runtime.spec import Contract, Crop, Jpeg, KeepRatioResize, SampleFrames
from support.encode import Encoding, encode, moving_shapes
from support.fake_triton import FakeModel, FakeTriton, fake_triton

CONTRACT = Contract(
    sampler=SampleFrames(clip_len=4, frame_interval=3, num_clips=2),
    resize=KeepRatioResize(short=48),
    crop=Crop(kind="three", width=48, height=48),
    classes=3,
    average="prob",
    labels=("left", "right", "once around"),
)


FLOW = replace(CONTRACT, channels=2)


@pytest.fixture
def flow_contract() -> Contract:
    return FLOW


@pytest.fixture
def flow_server() -> Iterator[FakeTriton]:
    """One model, of optical flow."""
    with fake_triton({"flow": FakeModel(FLOW)}) as running:
        yield running


LOSSY = replace(CONTRACT, wire=Jpeg(quality=90))


@pytest.fixture
def lossy_contract() -> Contract:
    return LOSSY


@pytest.fixture
def lossy_server() -> Iterator[FakeTriton]:
    """One model, whose frames travel as JPEG."""
    with fake_triton({"lossy": FakeModel(LOSSY)}) as running:
        yield running


@pytest.fixture
def contract() -> Contract:
    return CONTRACT


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    """The model "moves" as action-export publishes it, and "foreign", which it did not write."""
    models = {
        "moves": FakeModel(CONTRACT),
        "moves_preprocess": FakeModel(CONTRACT, outputs=("clips",)),
        "foreign": FakeModel(None),
    }
    with fake_triton(models) as running:
        yield running


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of 96x72."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    return encode(path, moving_shapes(60, 72, 96), Encoding(options={"g": "12"}))
