"""A graph that loops over the views of a video gives the flat graph's scores in less memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from action_export import onnx_file
from action_export.graph import serving_module
from action_export.loop import views_at_once
from action_export.tracing import OPSETS, Graph, onnx_from_module, onnx_from_views
from action_export.types import TensorSpec
from numpy.typing import NDArray
from support.tiny import MODEL_3D, PIPELINE_3D, Tiny, make, with_step

VIEWS = 9
CLIPS = TensorSpec(name="clips", dtype="UINT8", dims=(VIEWS, 2, 16, 16, 3), max_batch_size=2)
SCORES = TensorSpec(name="scores", dtype="FP32", dims=(5,), max_batch_size=2)


@pytest.mark.parametrize(
    ("views", "at_once"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (7, 1), (8, 4), (10, 2), (12, 4), (30, 3)],
)
def test_a_step_takes_the_largest_divisor_up_to_four(views: int, at_once: int) -> None:
    assert views_at_once(views) == at_once


# --- A recognizer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Twelve views: four clips of three crops."""
    pipeline = with_step(PIPELINE_3D, 1, num_clips=4)
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, pipeline)


@pytest.fixture(scope="module", params=["prob", "score"])
def flat_and_looped(
    request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Graph, Graph]:
    folder = tmp_path_factory.mktemp(request.param)
    specs = dict(clips=tiny.tensors.clips, scores=tiny.tensors.scores)
    how = dict(layout="NCTHW", average=request.param)
    flat = serving_module(tiny.model, **how)
    views = serving_module(tiny.model, **how, averaged=False)
    return (
        onnx_from_module(flat, **specs, opset=18, path=folder / "flat.onnx"),
        onnx_from_views(views, **specs, opset=18, path=folder / "looped.onnx"),
    )


def clips_of(batch: int, spec: TensorSpec) -> NDArray[np.uint8]:
    """Each row and each view has a brightness of its own."""
    rng = np.random.default_rng(batch)
    noise = rng.integers(0, 100, spec.shape(batch))
    bright = rng.integers(0, 150, (batch, spec.dims[0], 1, 1, 1, spec.dims[-1]))
    return (noise + bright).astype(np.uint8)


def scores_of(path: Path, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores: NDArray[np.float32] = session.run(["scores"], {"clips": clips})[0]
    return scores


@pytest.mark.cpu
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_scores_equal_those_of_the_flat_graph(
    tiny: Tiny, flat_and_looped: tuple[Graph, Graph], batch: int
) -> None:
    flat, looped = flat_and_looped
    clips = clips_of(batch, tiny.tensors.clips)
    expected = scores_of(flat.path, clips)
    spread = float(expected.max() - expected.min())
    assert float(np.abs(scores_of(looped.path, clips) - expected).max()) <= 1e-6 * spread
    for other in range(1, batch):  # rows that are mixed up would show
        assert float(np.abs(expected[other] - expected[0]).max()) > 1e-3 * spread


def test_the_outer_graph_has_the_interface_and_the_weights(
    tiny: Tiny, flat_and_looped: tuple[Graph, Graph]
) -> None:
    onnx.checker.check_model(flat_and_looped[1].path, full_check=True)
    flat, looped = (onnx.load(graph.path).graph for graph in flat_and_looped)
    for ours, theirs in zip(
        (*looped.input, *looped.output), (*flat.input, *flat.output), strict=True
    ):
        assert (ours.name, ours.type) == (theirs.name, theirs.type)
    assert [node.op_type for node in looped.node] == ["Loop", "ReduceMean"]
    [body] = [entry.g for entry in looped.node[0].attribute]
    assert not body.initializer
    assert {"Conv", "Gemm"} <= {node.op_type for node in body.node}
    assert flat_and_looped[1].nodes == len(looped.node) + len(body.node)


# --- What the loop must leave as it is ----------------------------------------------------------


class Brightness(torch.nn.Module):
    """A convolution whose values are many times the pixels, then the mean of each view."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(3, width, 3, padding=1)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        pixels = clips.flatten(0, 1).permute(0, 4, 1, 2, 3).float()
        values = self.conv(pixels).relu().mean(dim=(2, 3, 4))
        return values.reshape(clips.shape[0], -1, values.shape[-1])


class Average(Brightness):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return super().forward(clips).mean(dim=1)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_runs(tmp_path: Path, opset: int) -> None:
    torch.manual_seed(0)
    module = Brightness().eval()
    path = tmp_path / "model.onnx"
    onnx_from_views(module, clips=CLIPS, scores=SCORES, opset=opset, path=path)
    onnx.checker.check_model(path, full_check=True)
    clips = clips_of(2, CLIPS)
    with torch.no_grad():
        expected = module(torch.from_numpy(clips)).mean(dim=1).numpy()
    np.testing.assert_allclose(scores_of(path, clips), expected, rtol=1e-5)


def test_weights_beyond_the_limit_stand_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Brightness().eval()
    specs = dict(clips=CLIPS, scores=SCORES, opset=18)
    onnx_from_views(module, **specs, path=tmp_path / "whole.onnx")
    monkeypatch.setattr(onnx_file, "_LARGEST_WEIGHTS", 100)
    split = onnx_from_views(module, **specs, path=tmp_path / "split.onnx")
    assert split.files == ("split.onnx", "split.onnx.data")
    clips = clips_of(1, CLIPS)
    same = [scores_of(tmp_path / f"{name}.onnx", clips) for name in ("whole", "split")]
    np.testing.assert_array_equal(*same)


# --- Memory -------------------------------------------------------------------------------------

PEAK = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape[1:]
session.run(None, {"clips": np.ones((1, *shape), np.uint8)})
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak)
"""


def peak_mib(path: Path) -> float:
    """What a process that runs the graph once takes at most."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 1024


def test_only_the_views_of_one_step_have_activations(tmp_path: Path) -> None:
    views, frames, side, width = 32, 4, 64, 48
    clips = replace(CLIPS, dims=(views, frames, side, side, 3))
    scores = replace(SCORES, dims=(width,))
    specs = dict(clips=clips, scores=scores, opset=18)
    onnx_from_module(Average(width).eval(), **specs, path=tmp_path / "flat.onnx")
    onnx_from_views(Brightness(width).eval(), **specs, path=tmp_path / "looped.onnx")
    activation_mib = views * width * frames * side * side * 4 / 2**20  # 96 MiB, 12 of a step
    spared = peak_mib(tmp_path / "flat.onnx") - peak_mib(tmp_path / "looped.onnx")
    assert spared > 0.8 * activation_mib
