"""The proof: it passes what is right, catches each way of being wrong, and knows when it can't."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from action_export import parity
from action_export.errors import InconclusiveError, ParityError, TracingError, VideoError
from action_export.graph import serving_module
from action_export.reference import Reference, run_mmaction
from action_export.tracing import onnx_from_module
from action_export.types import Check
from action_runtime.spec import Contract, Crop, KeepRatioResize, SampleFrames
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


def test_the_right_graph_passes_on_every_batch_size(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...]
) -> None:
    checks = verify(tiny, right, pair)
    assert list(checks) == ["graph, batch 1", "graph, batch 2", "graph, batch 3"]
    assert all(check.passed for check in checks.values())
    assert checks["graph, batch 1"].detail == "2 rows"
    assert checks["graph, batch 3"].detail == "3 rows"
    assert {checks[f"graph, batch {size}"].top1 for size in (1, 2, 3)} == {1.0}
    assert {checks[f"graph, batch {size}"].top5 for size in (1, 2, 3)} == {1.0}
    parity.require(tuple(checks.values()))


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (16, [1, 2, 3])]
)
def test_a_graph_runs_on_batches_below_and_above_the_traced_one(
    tiny: Tiny, right: Path, pair: tuple[Reference, ...], largest: int, sizes: list[int]
) -> None:
    clips = replace(tiny.tensors.clips, max_batch_size=largest)
    checks = parity.verify_graph(right, pair, clips, TOLERANCE)
    assert [check.name for check in checks] == [f"graph, batch {size}" for size in sizes]


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (16, [1, 2, 3, 16])]
)
def test_a_plan_runs_on_the_largest_batch_as_well(
    tiny: Tiny, pair: tuple[Reference, ...], largest: int, sizes: list[int]
) -> None:
    ran = []

    def run(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        ran.append(len(clips))
        return np.stack([pair[row % 2].scores for row in range(len(clips))])

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
        (REVERSED, {2}),  # a, b, a is the same from behind
        (SCALED, {1, 2, 3}),
        (NAN, {1, 2, 3}),
        (NAN_AT_THE_END, {1, 2, 3}),
    ],
    ids=["videos averaged", "rows swapped", "scaled", "nan", "nan at the end"],
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
    assert not any(check.passed for check in verify(tiny, model_path, pair).values())


def test_a_file_that_does_not_load_is_one_line(
    tiny: Tiny, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    (tmp_path / "wrong.onnx").write_bytes(b"no graph")
    with pytest.raises(TracingError, match="does not load") as caught:
        verify(tiny, tmp_path / "wrong.onnx", pair)
    assert "\n" not in caught.value.message


# --- Pixels and sampled frames ------------------------------------------------------------------


def test_the_runtime_makes_mmactions_clips(tiny: Tiny, pair: tuple[Reference, ...]) -> None:
    sampled, pixels = parity.verify_pixels(pair, tiny.contract)
    assert (sampled.error, sampled.bound) == (0, 0)
    assert pixels.passed
    assert pixels.error <= pixels.bound


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_crops_in_another_order_are_caught(
    tiny: Tiny, pair: tuple[Reference, ...], order: tuple[int, ...]
) -> None:
    def reordered(reference: Reference) -> Reference:
        crops = reference.clips.reshape(3, 2, *reference.clips.shape[2:])
        return replace(reference, clips=crops[list(order)].reshape(reference.clips.shape))

    checks = parity.verify_pixels(tuple(map(reordered, pair)), tiny.contract)
    assert [check.passed for check in checks] == [True, False]


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


# --- Inconclusive references --------------------------------------------------------------------


def require(*given: Reference) -> None:
    parity.require_distinguishable(given, TOLERANCE)


def test_two_videos_that_mmaction2_tells_apart_are_enough(pair: tuple[Reference, ...]) -> None:
    require(*pair)
    assert parity.distinguishable(pair, TOLERANCE) == pair


def test_one_video_is_inconclusive(pair: tuple[Reference, ...]) -> None:
    with pytest.raises(InconclusiveError, match="1 video") as caught:
        require(pair[0])
    assert "--videos" in caught.value.hint


def test_two_copies_of_one_video_are_inconclusive(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "another.mp4"
    shutil.copy(VIDEOS[0], copy)
    twice = [run_mmaction(tiny.model, tiny.preprocessing, video) for video in (VIDEOS[0], copy)]
    with pytest.raises(InconclusiveError, match="alike") as caught:
        require(*twice)
    assert "--videos" in caught.value.hint
    assert len(parity.distinguishable(tuple(twice), TOLERANCE)) == 1


def constant_for_all_classes(model: Any) -> None:
    torch.nn.init.zeros_(model.cls_head.fc_cls.weight)
    torch.nn.init.zeros_(model.cls_head.fc_cls.bias)


def constant_for_all_videos(model: Any) -> None:
    torch.nn.init.zeros_(model.cls_head.fc_cls.weight)
    torch.nn.init.normal_(model.cls_head.fc_cls.bias)


def not_a_number(model: Any) -> None:
    torch.nn.init.constant_(model.cls_head.fc_cls.bias, float("nan"))


@pytest.mark.parametrize("spoil", [constant_for_all_classes, constant_for_all_videos, not_a_number])
def test_a_model_that_does_not_look_at_its_input_is_inconclusive(
    tiny: Tiny, spoil: Callable[[Any], None]
) -> None:
    model = deepcopy(tiny.model)
    with torch.no_grad():
        spoil(model)
    with pytest.raises(InconclusiveError, match="alike") as caught:
        require(*references(replace(tiny, model=model)))
    assert "trained" in caught.value.hint


def test_references_must_lie_ten_bounds_apart(pair: tuple[Reference, ...]) -> None:
    one = replace(pair[0], scores=np.array([0, 1, 0.5], np.float32))
    near = replace(one, scores=np.array([0, 1, 0.5 + 9e-4], np.float32))
    far = replace(one, scores=np.array([0, 1, 0.5 + 11e-4], np.float32))
    assert parity.distinguishable((one, near), 1e-4) == (one,)
    assert parity.distinguishable((one, far), 1e-4) == (one, far)
    # pairwise: `near` is no further from `far` than from `one`
    assert parity.distinguishable((one, far, near), 1e-4) == (one, far)


def test_one_distinct_pair_among_copies_is_enough(pair: tuple[Reference, ...]) -> None:
    require(pair[0], pair[0], pair[1])


# --- The measure, and what is told --------------------------------------------------------------


def check(name: str, error: float, bound: float = 1e-4) -> Check:
    return Check(name=name, error=error, bound=bound, unit="of spread")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_is_an_error_wherever_it_stands(pair: tuple[Reference, ...], place: int) -> None:
    rows = [(reference.scores.copy(), reference) for reference in (*pair, pair[0])]
    assert parity.compare_scores("rows", rows, TOLERANCE).passed
    rows[place][0][-1] = float("nan")
    assert not parity.compare_scores("rows", rows, TOLERANCE).passed


def test_a_difference_is_measured_by_the_spread_of_the_reference(
    pair: tuple[Reference, ...],
) -> None:
    flat = replace(pair[0], scores=np.array([0.1, 0.1001, 0.1], np.float32))
    moved = flat.scores + np.array([0, 0, 1e-5], np.float32)
    result = parity.compare_scores("flat", [(moved, flat)], TOLERANCE)
    assert result.error == pytest.approx(0.1, rel=1e-2)
    assert not result.passed


def test_swapped_rows_are_caught_where_the_bound_is_wider_than_the_videos_are_apart(
    pair: tuple[Reference, ...],
) -> None:
    first, second = pair[:2]
    wide = 2.0
    right = [(first.scores + 1e-5, first), (second.scores - 1e-5, second)]
    assert parity.compare_scores("half", right, wide).passed
    swapped = [(second.scores, first), (first.scores, second)]
    with pytest.raises(InconclusiveError, match=f"computed for {first.video.name} is nearer"):
        parity.compare_scores("half", swapped, wide)


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


def test_a_wide_bound_is_tried_on_those_that_lie_farthest_apart(
    pair: tuple[Reference, ...],
) -> None:
    near = replace(pair[0], scores=pair[0].scores + 1e-3 * np.eye(1, len(pair[0].scores))[0])
    three = (pair[0], near, pair[1])
    assert parity.farthest_apart(three, bound=1e-6) == three
    chosen = parity.farthest_apart(three, bound=10.0)
    assert len(chosen) == 2
    assert chosen[1] is pair[1]
