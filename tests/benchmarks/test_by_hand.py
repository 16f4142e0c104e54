"""The ensemble that is written by hand gives the scores of the one that is exported."""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from action_client import VideoClient
from action_export import example
from action_runtime.spec import Contract, Crop, KeepRatioResize, SampleFrames
from action_runtime.transforms import make_clips

from benchmarks.by_hand.client import ByHand
from benchmarks.by_hand.write import write
from benchmarks.contender import Ask
from benchmarks.contenders import Runtime, published_contract
from benchmarks.models import ENGINES, SERVED, Case, publish_unproved, request

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


def test_both_ensembles_and_the_runtime_alone_score_alike(tmp_path: Path) -> None:
    case, repo = Case.named("example-full"), tmp_path / "repo"
    publish_unproved(ENGINES["onnx"], request(case, ENGINES["onnx"], repo, example.CHECKPOINT))
    write(str(example.CONFIG), example.CHECKPOINT, case.options, repo)
    contract = tmp_path / "contract.json"
    contract.write_text(published_contract(repo).to_json())
    video = str(example.CLIPS[0])
    with ExitStack() as stack:
        by_hand = ByHand({"repo": str(repo), "contract": str(contract)}, stack)
        answer = by_hand.prepare(Ask(video=video))()
        with VideoClient(by_hand.url, SERVED, timeout_s=60) as client:
            served = client.classify(video).scores
    alone = Runtime({"repo": str(repo)}, ExitStack()).prepare(Ask(video=video))()
    np.testing.assert_allclose(answer.scores, served, atol=1e-5)
    np.testing.assert_allclose(alone.scores, served, atol=1e-6)
    assert np.ptp(served) > 0.1
    # every sampled position: two clips of eight frames of 340x256
    assert answer.sent == 16 * 340 * 256 * 3
    assert answer.parts["recognizer_infer"] > 0
    assert answer.parts["preprocess_infer"] > 0


@pytest.mark.parametrize(
    ("kind", "layout"), [("center", "NCHW"), ("ten", "NCHW"), ("three", "NCTHW")]
)
def test_its_crops_are_those_of_the_exporter_normalised(
    kind: Any, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 32 if kind == "three" else 24
    length = 1 if layout == "NCHW" else 3
    contract = Contract(
        sampler=SampleFrames(clip_len=length, num_clips=2),
        resize=KeepRatioResize(short=32),
        crop=Crop(kind=kind, width=size, height=size),
        classes=3,
        average="prob",
    )
    frames = np.random.default_rng(0).integers(0, 256, (2 * length, 48, 80, 3), np.uint8)
    clips = make_clips(frames, np.arange(2 * length), contract)
    wanted = (clips.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    if layout == "NCHW":
        wanted = wanted[:, :, 0].transpose(0, 1, 4, 2, 3)
    else:
        wanted = wanted.transpose(0, 1, 5, 2, 3, 4)
    monkeypatch.setitem(
        sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils")
    )
    model = importlib.import_module("benchmarks.by_hand.preprocess").TritonPythonModel()
    model.mean, model.std = np.float32(MEAN), np.float32(STD)
    model.settings = {
        "short": 32,
        "crop": kind,
        "crop_size": contract.frame_size[0],
        "clip_len": length,
        "layout": layout,
    }
    np.testing.assert_allclose(model.transform(frames), wanted, atol=1e-6)
