"""The proof: it passes what is right, catches each way of being wrong, and knows when it can't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from action_export import measure, parity
from action_export.errors import ParityError, TracingError, VideoError
from action_export.graph import serving_module
from action_export.reference import Reference, run_mmaction
from action_export.tracing import onnx_from_module
from action_export.types import Check
from action_runtime import interpolation, transforms
from action_runtime.spec import Contract, Crop, Jpeg, KeepRatioResize, SampleFrames
from numpy.typing import NDArray
from onnx import TensorProto
from onnx import helper as oh
from support.tiny import MODEL_3D, PIPELINE_3D, VIDEOS, Tiny, make, references
from support.videos import real_videos

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> tuple[Reference, ...]:
    return references(tiny)


@pytest.fixture(scope="module")
def right(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph as it is exported."""
    return exported(tiny, module_of(tiny.model), tmp_path_factory.mktemp("right") / "model.onnx")


def module_of(model: torch.nn.Module) -> torch.nn.Module:
    return serving_module(model, layout="NCTHW", average="prob")


def exported(tiny: Tiny, module: torch.nn.Module, path: Path) -> Path:
    tensors = tiny.tensors
    return onnx_from_module(
        module, clips=tensors.clips, scores=tensors.scores, opset=18, path=path
    ).path


def verify(tiny: Tiny, path: Path, pair: tuple[Reference, ...]) -> dict[str, Check]:
    checks = parity.verify_graph(path, pair, tiny.tensors.clips, TOLERANCE)
    return {check.name: check for check in checks}


@pytest.mark.cpu
def test_the_right_graph_passes_on_every_batch_size(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...]
) -> None:
    checks = verify(tiny, right, pair)
    assert list(checks) == ["graph, batch 1", "graph, batch 2", "graph, batch 3", "graph, logits"]
    assert all(check.passed for check in checks.values())
    assert checks["graph, logits"].detail == "2 rows"
    assert checks["graph, batch 1"].detail == "2 rows"
    assert checks["graph, batch 3"].detail == "3 rows"
    assert {checks[f"graph, batch {size}"].top1 for size in (1, 2, 3)} == {1.0}
    assert {checks[f"graph, batch {size}"].top5 for size in (1, 2, 3)} == {1.0}
    parity.require(tuple(checks.values()))


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (16, [1, 2, 3, 16])]
)
def test_a_graph_runs_on_batches_below_and_above_the_traced_one(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...], largest: int, sizes: list[int]
) -> None:
    clips = replace(tiny.tensors.clips, max_batch_size=largest)
    *checks, logits = parity.verify_graph(right, pair, clips, TOLERANCE)
    assert [check.name for check in checks] == [f"graph, batch {size}" for size in sizes]
    rows = [check.detail for check in checks]
    assert rows == ["2 rows", *(f"{size} rows" for size in sizes[1:])]  # alone, each video
    assert logits.detail == ("1 rows" if largest == 1 else "2 rows")


@pytest.mark.parametrize("limit", ["_CHEAP_S", "_CHEAP_BYTES"])
def test_the_largest_batch_is_left_out_where_it_would_take_long_or_much(
    tiny: Tiny,
    right: Path,
    pair: tuple[Reference, ...],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    assert (parity._CHEAP_S, parity._CHEAP_BYTES) == (2.0, 2**30)
    monkeypatch.setattr(parity, limit, -1)
    clips = replace(tiny.tensors.clips, max_batch_size=16)
    names = [check.name for check in parity.verify_graph(right, pair, clips, TOLERANCE)]
    assert names == ["graph, batch 1", "graph, batch 2", "graph, batch 3", "graph, logits"]


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (16, [1, 2, 3, 16])]
)
def test_a_plan_runs_on_the_largest_batch_as_well(
    tiny: Tiny, pair: tuple[Reference, ...], largest: int, sizes: list[int]
) -> None:
    ran = []

    def run(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        ran.append(len(clips))
        of_each = [[bool((row == one.clips[0]).all()) for one in pair].index(True) for row in clips]
        return np.stack([pair[video].scores for video in of_each])

    clips = replace(tiny.tensors.clips, max_batch_size=largest)
    checks = parity.verify_runner(run, pair, clips, TOLERANCE, "plan")
    assert [check.name for check in checks] == [f"plan, batch {size}" for size in sizes]
    assert ran == [*reversed(sizes), 1]  # the largest first; of one, each video


# --- Wrong graphs -------------------------------------------------------------------------------


def ending_with(right: Path, nodes: Sequence[onnx.NodeProto], path: Path) -> Path:
    """The right graph, whose output goes through `nodes`, from "right" to "scores"."""
    model = onnx.load(right)
    for node in model.graph.node:
        node.output[:] = ["right" if name == "scores" else name for name in node.output]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def constant(name: str, *values: float, kind: int = TensorProto.INT64) -> onnx.NodeProto:
    tensor = oh.make_tensor(name, kind, [len(values)], values)
    return oh.make_node("Constant", [], [name], value=tensor)


AVERAGED = [
    constant("batch_axis", 0),
    oh.make_node("ReduceMean", ["right", "batch_axis"], ["one_row"], keepdims=1),
    oh.make_node("Shape", ["right"], ["all_rows"]),
    oh.make_node("Expand", ["one_row", "all_rows"], ["scores"]),
]
REVERSED = [
    constant("from", -1),
    constant("to", -(2**31)),
    constant("axis", 0),
    constant("step", -1),
    oh.make_node("Slice", ["right", "from", "to", "axis", "step"], ["scores"]),
]
# Row 2 gets the scores of row 0, row 3 those of row 1: what follows the traced batch of two
FOLLOWING = [
    constant("zero", 0),
    oh.make_node("Shape", ["right"], ["rows"], start=0, end=1),
    oh.make_node("Squeeze", ["rows", "zero"], ["count"]),
    oh.make_node("Squeeze", ["zero", "zero"], ["first"]),
    constant("one", 1),
    oh.make_node("Squeeze", ["one", "zero"], ["step"]),
    oh.make_node("Range", ["first", "count", "step"], ["numbers"]),
    constant("two", 2),
    oh.make_node("Mod", ["numbers", "two"], ["taken"]),
    oh.make_node("Gather", ["right", "taken"], ["scores"], axis=0),
]
SCALED = [
    constant("factor", 1.001, kind=TensorProto.FLOAT),
    oh.make_node("Mul", ["right", "factor"], ["scores"]),
]
NAN = [
    constant("nan", float("nan"), kind=TensorProto.FLOAT),
    oh.make_node("Mul", ["right", "nan"], ["scores"]),
]
# In the last row only, and there in the last class only
NAN_AT_THE_END = [
    constant("one", 1, 1),
    oh.make_node("Shape", ["right"], ["shape"]),
    oh.make_node("Sub", ["shape", "one"], ["last"]),
    constant("one_index", 1, 2),
    oh.make_node("Reshape", ["last", "one_index"], ["at"]),
    constant("nan", float("nan"), kind=TensorProto.FLOAT),
    oh.make_node("ScatterND", ["right", "at", "nan"], ["scores"]),
]


@pytest.mark.parametrize(
    ("nodes", "caught_at"),
    [
        (AVERAGED, {2, 3}),
        (REVERSED, {2, 3}),
        (FOLLOWING, {3}),
        (SCALED, {1, 2, 3}),
        (NAN, {1, 2, 3}),
        (NAN_AT_THE_END, {1, 2, 3}),
    ],
    ids=["videos averaged", "rows swapped", "rows repeated", "scaled", "nan", "nan at the end"],
)
def test_a_wrong_end_of_the_graph_is_caught(
    tiny: Tiny,
    right: Path,
    pair: tuple[Reference, ...],
    tmp_path: Path,
    nodes: list[onnx.NodeProto],
    caught_at: set[int],
) -> None:
    path = ending_with(right, nodes, tmp_path / "wrong.onnx")
    checks = verify(tiny, path, pair)
    # what comes before softmax is right
    logits = checks.pop("graph, logits", None)
    assert logits is None or logits.passed
    failed = {int(name[-1]) for name, check in checks.items() if not check.passed}
    assert failed == caught_at
    with pytest.raises(ParityError, match="differs from mmaction2"):
        parity.require(tuple(checks.values()))


def test_three_videos_show_rows_that_are_swapped_in_any_batch(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    third = run_mmaction(tiny.model, tiny.preprocessing, real_videos()[0])
    path = ending_with(right, REVERSED, tmp_path / "wrong.onnx")
    checks = verify(tiny, path, (*pair, third))
    assert not checks["graph, batch 2"].passed
    assert not checks["graph, batch 3"].passed


class Frozen(torch.nn.Module):
    """A recognizer whose first view is that of the video that it was traced with."""

    def __init__(self, inner: torch.nn.Module, example: torch.Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("example", example)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        example: Any = self.example
        frozen = example[:, :1].expand(clips.shape[0], -1, -1, -1, -1, -1)
        scores: torch.Tensor = self.inner(torch.cat([frozen, clips[:, 1:]], dim=1))
        return scores


def test_a_constant_frozen_from_the_example_is_caught_by_the_other_video(
    tiny: Tiny, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    example = torch.from_numpy(pair[0].clips.copy())
    path = exported(tiny, Frozen(module_of(tiny.model), example), tmp_path / "wrong.onnx")
    assert not any(check.passed for check in verify(tiny, path, pair).values())
    # the very video that it was traced with would have passed
    alone = parity.verify_graph(path, pair[:1], tiny.tensors.clips, TOLERANCE)
    assert all(check.passed for check in alone)


def unnormalised(model: Any) -> None:
    model.data_preprocessor._enable_normalize = False


def swapped_channels(model: Any) -> None:
    model.data_preprocessor.to_rgb = True


def fresh_statistics(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


@pytest.mark.parametrize("spoil", [unnormalised, swapped_channels, fresh_statistics])
def test_a_step_left_out_of_the_graph_is_caught(
    tiny: Tiny,
    pair: tuple[Reference, ...],
    tmp_path: Path,
    spoil: Callable[[Any], None],
) -> None:
    model = deepcopy(tiny.model)
    spoil(model)
    path = exported(tiny, module_of(model), tmp_path / "wrong.onnx")
    checks = verify(tiny, path, pair)
    assert not any(check.passed for check in checks.values())


def test_scores_that_are_averaged_otherwise_are_caught(
    tiny: Tiny, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    module = serving_module(tiny.model, layout="NCTHW", average="score")
    path = exported(tiny, module, tmp_path / "wrong.onnx")
    assert not any(check.passed for check in verify(tiny, path, pair).values())


@pytest.fixture(scope="module")
def confident(
    tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tiny, tuple[Reference, ...]]:
    """A classifier so wide that softmax is 0 or 1 for every view."""
    model: Any = deepcopy(tiny.model)
    with torch.no_grad():
        model.cls_head.fc_cls.weight *= 1000
        model.cls_head.fc_cls.bias *= 1000
    wide = replace(tiny, model=model)
    return wide, references(wide)


def test_a_fault_that_saturated_scores_hide_is_caught_in_the_logits(
    confident: tuple[Tiny, tuple[Reference, ...]], tmp_path: Path
) -> None:
    wide, pair = confident
    measure.require_distinguishable(pair, TOLERANCE)
    right = exported(wide, module_of(wide.model), tmp_path / "right.onnx")
    assert all(check.passed for check in verify(wide, right, pair).values())

    model: Any = deepcopy(wide.model)
    model.data_preprocessor.std *= 1.002
    path = exported(wide, module_of(model), tmp_path / "wrong.onnx")
    checks = verify(wide, path, pair)
    assert [name for name, check in checks.items() if not check.passed] == ["graph, logits"]
    assert checks["graph, logits"].error > 5 * TOLERANCE
    clips = replace(wide.tensors.clips, max_batch_size=1)
    assert [check.passed for check in parity.verify_graph(path, pair, clips, TOLERANCE)] == [
        True,
        False,
    ]


def test_logits_that_only_mmaction2_softens_are_not_asked_for(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...]
) -> None:
    """Of a head with its own way of scoring, softmax need not be what its logits go into."""
    own = tuple(replace(reference, logits=None) for reference in pair)
    assert list(verify(tiny, right, own)) == ["graph, batch 1", "graph, batch 2", "graph, batch 3"]


@pytest.fixture(scope="module")
def batch_of_one(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traced with one video and no dynamic axis: every size in the graph is a constant."""
    path = tmp_path_factory.mktemp("one") / "wrong.onnx"
    program = torch.onnx.export(
        module_of(tiny.model),
        (torch.zeros(tiny.tensors.clips.shape(1), dtype=torch.uint8),),
        dynamo=True,
        input_names=["clips"],
        output_names=["scores"],
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    return path


def test_a_batch_that_is_fixed_to_one_is_caught(
    tiny: Tiny, batch_of_one: Path, pair: tuple[Reference, ...]
) -> None:
    with pytest.raises(ParityError, match="does not run on a batch of 3") as caught:
        verify(tiny, batch_of_one, pair)
    assert "\n" not in caught.value.message


def test_a_batch_that_is_fixed_inside_and_free_outside_is_caught(
    tiny: Tiny, batch_of_one: Path, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    """The silent form: the file says that any batch will do."""
    model = onnx.load(batch_of_one)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(ParityError, match="batch of 3"):
        verify(tiny, tmp_path / "wrong.onnx", pair)


def test_all_videos_of_a_batch_in_one_row_are_caught(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    nodes = [
        constant("batch_axis", 0),
        oh.make_node("ReduceMean", ["right", "batch_axis"], ["scores"], keepdims=1),
    ]
    path = ending_with(right, nodes, tmp_path / "wrong.onnx")
    with pytest.raises(ParityError, match=r"turns a batch of 3 into \[1, 10\]"):
        verify(tiny, path, pair)


def test_another_number_of_classes_is_caught(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    nodes = [
        constant("start", 0),
        constant("end", 9),
        constant("axis", 1),
        oh.make_node("Slice", ["right", "start", "end", "axis"], ["scores"]),
    ]
    model_path = tmp_path / "wrong.onnx"
    model = onnx.load(ending_with(right, nodes, model_path))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    onnx.save(model, model_path)
    checks = verify(tiny, model_path, pair)
    assert not any(check.passed for name, check in checks.items() if "batch" in name)


def test_a_file_that_does_not_load_is_one_line(
    tiny: Tiny, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    (tmp_path / "wrong.onnx").write_bytes(b"no graph")
    with pytest.raises(TracingError, match="does not load") as caught:
        verify(tiny, tmp_path / "wrong.onnx", pair)
    assert "\n" not in caught.value.message


# --- Pixels and sampled frames ------------------------------------------------------------------


def test_the_runtime_makes_mmactions_clips(tiny: Tiny, pair: tuple[Reference, ...]) -> None:
    sampled, pixels, stock = parity.verify_pixels(pair, tiny.contract)
    assert (sampled.error, sampled.bound) == (0, 0)
    assert (pixels.error, pixels.bound, pixels.detail) == (0, 0, "resized by cv2")
    assert stock.error <= stock.bound == 1
    assert (stock.name, stock.detail) == (
        "pixels without OpenCV",
        "8 frames of each video, by numpy",
    )


def test_wrong_pixels_of_a_server_without_opencv_are_caught(
    tiny: Tiny, pair: tuple[Reference, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter has OpenCV, the stock image of Triton has not."""
    wrong = {**interpolation.RESAMPLERS, "bilinear": interpolation.nearest}
    monkeypatch.setattr(transforms, "RESAMPLERS", wrong)
    assert [check.passed for check in parity.verify_pixels(pair, tiny.contract)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "change",
    [
        dict(resize=KeepRatioResize(short=32, interpolation="bicubic")),
        dict(wire=Jpeg()),
    ],
    ids=["bicubic", "jpeg"],
)
def test_what_only_opencv_can_do_is_not_asked_of_numpy(
    tiny: Tiny, pair: tuple[Reference, ...], change: dict[str, Any]
) -> None:
    names = [check.name for check in parity.verify_pixels(pair, replace(tiny.contract, **change))]
    assert names == ["sampled frames", "pixels"]


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_crops_in_another_order_are_caught(
    tiny: Tiny, pair: tuple[Reference, ...], order: tuple[int, ...]
) -> None:
    def reordered(reference: Reference) -> Reference:
        crops = reference.clips.reshape(3, 2, *reference.clips.shape[2:])
        return replace(reference, clips=crops[list(order)].reshape(reference.clips.shape))

    checks = parity.verify_pixels(tuple(map(reordered, pair)), tiny.contract)
    assert [check.passed for check in checks] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (dict(sampler=SampleFrames(clip_len=4, frame_interval=7, num_clips=2)), "sampled frames"),
        (dict(sampler=SampleFrames(clip_len=4, frame_interval=8, num_clips=3)), "sampled frames"),
        (dict(resize=KeepRatioResize(short=32, interpolation="nearest")), "pixels"),
        (dict(crop=Crop(kind="center", width=32, height=32)), "pixels"),
    ],
    ids=["interval", "clips", "interpolation", "crop"],
)
def test_a_wrong_contract_is_caught(
    tiny: Tiny, pair: tuple[Reference, ...], change: dict[str, Any], wrong: str
) -> None:
    contract = replace(tiny.contract, **change)
    checks = {check.name: check for check in parity.verify_pixels(pair, contract)}
    assert not checks[wrong].passed


def test_a_video_that_the_preprocess_model_refuses_is_named(
    tiny: Tiny, pair: tuple[Reference, ...]
) -> None:
    contract: Contract = replace(tiny.contract, crop=Crop(kind="center", width=400, height=32))
    with pytest.raises(VideoError, match="smaller than the center crop") as caught:
        parity.verify_pixels(pair, contract)
    assert VIDEOS[0].name in caught.value.message


# --- What is told -------------------------------------------------------------------------------


def check(name: str, error: float, bound: float = 1e-4) -> Check:
    return Check(name=name, error=error, bound=bound, unit="of spread")


def test_all_failures_are_told_with_their_figures() -> None:
    checks = (check("one", 2.0), check("two", 1e-6), check("three", float("nan")))
    with pytest.raises(ParityError) as caught:
        parity.require(checks)
    assert "one by 2 of spread (bound 0.0001)" in caught.value.message
    assert "three by nan" in caught.value.message
    assert "two" not in caught.value.message
    assert "nothing was published" in caught.value.hint


def test_the_summary_is_what_is_identical_and_the_worst_of_the_rest() -> None:
    checks = (check("frames", 0.0, 0.0), check("small", 1e-6), check("large", 5e-5))
    assert parity.summary(checks) == "frames identical, off by 5.0e-05 of spread (bound 0.0001)"
