"""The ONNX file: one dynamic axis, nothing of this machine, and every failure in one line."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from action_export.errors import TracingError, UnsupportedError
from action_export.graph import serving_module
from action_export.tracing import OPSETS, Graph, onnx_from_module
from action_export.types import TensorSpec
from numpy.typing import NDArray
from support.tiny import MODEL_3D, PIPELINE_3D, Tiny, make

CLIPS = TensorSpec(name="clips", dtype="UINT8", dims=(2, 4, 8, 8, 3), max_batch_size=4)
SCORES = TensorSpec(name="scores", dtype="FP32", dims=(5,), max_batch_size=4)


def pixels(batch: int, spec: TensorSpec = CLIPS) -> NDArray[np.uint8]:
    return np.random.default_rng(batch).integers(0, 256, spec.shape(batch), np.uint8)


def scores_of(path: Path, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores: NDArray[np.float32] = session.run(["scores"], {"clips": clips})[0]
    return scores


def trace(module: torch.nn.Module, path: Path, opset: int = 18) -> Graph:
    return onnx_from_module(module.eval(), clips=CLIPS, scores=SCORES, opset=opset, path=path)


def test_the_collector_rests_while_a_module_is_traced(tmp_path: Path) -> None:
    before = gc.get_threshold()
    during = []

    class Watch(torch.nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            during.append(gc.get_threshold())
            raise ValueError("seen")

    with pytest.raises(TracingError, match="seen"):
        trace(Watch(), tmp_path / "never.onnx")
    assert during[0][0] > before[0]
    assert gc.get_threshold() == before


def test_an_interrupt_that_comes_out_as_another_failure_is_an_interrupt(tmp_path: Path) -> None:
    """As where it arrives in an import: `except torch._dynamo.exc...` then finds no such module."""

    class Interrupted(torch.nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            try:
                raise KeyboardInterrupt
            except torch.not_imported.Error:  # type: ignore[attr-defined]
                return clips

    with pytest.raises(KeyboardInterrupt):
        trace(Interrupted(), tmp_path / "never.onnx")


# --- A recognizer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


@pytest.fixture(scope="module")
def module(tiny: Tiny) -> torch.nn.Module:
    return serving_module(tiny.model, layout="NCTHW", average="prob")


@pytest.fixture(scope="module")
def graph(tiny: Tiny, module: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return onnx_from_module(
        module,
        clips=tiny.tensors.clips,
        scores=tiny.tensors.scores,
        opset=18,
        path=tmp_path_factory.mktemp("graph") / "model.onnx",
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_batch_size_runs_and_equals_the_module(
    tiny: Tiny, module: torch.nn.Module, graph: Graph, batch: int
) -> None:
    clips = pixels(batch, tiny.tensors.clips)
    with torch.no_grad():
        expected = module(torch.from_numpy(clips)).numpy()
    scores = scores_of(graph.path, clips)
    assert scores.shape == (batch, 10)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_the_batch_is_the_only_dynamic_axis(tiny: Tiny, graph: Graph) -> None:
    traced = onnx.load(graph.path).graph
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*traced.input, *traced.output)
    }
    assert axes == {
        "clips": ["batch", *tiny.tensors.clips.dims],
        "scores": ["batch", *tiny.tensors.scores.dims],
    }
    kinds = [value.type.tensor_type.elem_type for value in (*traced.input, *traced.output)]
    assert kinds == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]


def test_the_file_is_valid_and_whole(graph: Graph) -> None:
    onnx.checker.check_model(graph.path, full_check=True)
    model = onnx.load(graph.path, load_external_data=False)
    assert graph.nodes == len(model.graph.node)
    assert graph.files == tuple(path.name for path in graph.path.parent.iterdir())


def test_nothing_of_this_machine_is_in_the_file(graph: Graph) -> None:
    content = graph.path.read_bytes()
    for trace_of_it in (b"site-packages", b".py", b"stack_trace", str(Path.home()).encode() + b"/"):
        assert trace_of_it not in content
    model = onnx.load(graph.path)
    kept = {prop.key for node in model.graph.node for prop in node.metadata_props}
    assert kept == {"pkg.torch.onnx.name_scopes"}
    assert not model.metadata_props
    assert not model.graph.metadata_props


# --- Opsets -------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """Mean colour of a video, then one linear layer: small, and right for any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 5)

    def colour(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.float().mean(dim=(1, 2, 3, 4))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(self.colour(clips))
        return scores


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (19, 9), (20, 9), (21, 10)])
def test_the_opset_is_the_one_asked_for_in_the_oldest_ir_that_holds_it(
    tmp_path: Path, opset: int, ir_version: int
) -> None:
    graph = trace(Linear(), tmp_path / "model.onnx", opset)
    model = onnx.load(graph.path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == ir_version
    assert graph.opset == opset
    assert scores_of(graph.path, pixels(3)).shape == (3, 5)


def test_every_opset_is_tested() -> None:
    assert OPSETS == (18, 19, 20, 21)


@pytest.mark.parametrize("opset", [0, 17, 22])
def test_an_opset_that_is_not_written_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(UnsupportedError, match=f"opset {opset}") as caught:
        trace(Linear(), tmp_path / "model.onnx", opset)
    assert "--opset 18 to 21" in caught.value.hint
    assert not list(tmp_path.iterdir())


# --- Translations of our own --------------------------------------------------------------------


class Rolling(Linear):
    """Video Swin's cyclic shift: along several axes at once, by more than a whole turn, by none."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        rolled = torch.roll(clips.float(), shifts=(-3, 2, 11, 0), dims=(2, -3, 4, 1))
        return super().forward(rolled[:, :, 1:, 2:, 3:])


def test_a_cyclic_shift_is_slices_of_known_bounds(tmp_path: Path) -> None:
    module = Rolling().eval()
    graph = trace(module, tmp_path / "model.onnx")
    kinds = {node.op_type for node in onnx.load(graph.path).graph.node}
    assert not kinds & {"Size", "Shape"}
    for batch in (1, 3):
        with torch.no_grad():
            expected = module(torch.from_numpy(pixels(batch))).numpy()
        np.testing.assert_allclose(scores_of(graph.path, pixels(batch)), expected, atol=1e-5)


# --- What torch cannot trace --------------------------------------------------------------------


class Branching(Linear):
    """Which branch is taken depends on the pixels."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(self.colour(clips))
        return scores if scores.sum() > 0 else -scores


class Unknown(Linear):
    """ONNX has no eigenvalues."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        colour = self.colour(clips)
        return torch.linalg.eigvals(colour[:, :, None] * colour[:, None]).real


class Raising(Linear):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such luck\nand a second line")


class OneVideo(Linear):
    """As mmaction2's max_testing_views asserts it."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        assert clips.shape[0] == 1, "one video only"
        return super().forward(clips)


class Specialised(Linear):
    """torch traces this without an error, for batches of the example's size alone."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        scores = super().forward(clips)
        return scores if clips.shape[0] == 2 else scores + 1


class Averaging(Linear):
    """One row, however many videos there are."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return super().forward(clips).mean(dim=0, keepdim=True)


class Selecting(Linear):
    """As many rows as there are dark videos."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        colour = self.colour(clips)
        scores: torch.Tensor = self.linear(colour[colour[:, 0] < 100])
        return scores


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Branching, "data-dependent"),
        (Unknown, "aten.linalg_eig"),
        (Raising, "ValueError: no such luck"),
        (OneVideo, "one video only"),
        (Specialised, "clips as [2, 2, 4, 8, 8, 3], not [batch, 2, 4, 8, 8, 3]"),
        (Averaging, "scores as [1, 5], not [batch, 5]"),
        (Selecting, "scores as [u0, 5], not [batch, 5]"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_traced_is_one_line_with_a_hint_and_no_file(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    module: Callable[[], torch.nn.Module],
    told: str,
) -> None:
    with pytest.raises(TracingError) as caught:
        trace(module(), tmp_path / "model.onnx")
    assert told in caught.value.message
    assert "\n" not in caught.value.message
    assert "family" in caught.value.hint
    assert not list(tmp_path.iterdir())
    # torch prints what it traced so far, and logs tracebacks
    assert capfd.readouterr() == ("", "")


def test_tracing_leaves_logging_as_it_was(tmp_path: Path) -> None:
    import logging

    before = logging.root.manager.disable
    with pytest.raises(TracingError):
        trace(Raising(), tmp_path / "model.onnx")
    assert logging.root.manager.disable == before
