"""The graph of each family with patches: for every batch, mmaction2's scores in plain operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from action_export.families import FAMILIES, decide, family_of, patch
from action_export.graph import serving_module
from action_export.loop import views_at_once
from action_export.tracing import onnx_from_module, onnx_from_views
from numpy.typing import NDArray
from support.tiny import (
    MODEL_2D,
    MODEL_3D,
    MODEL_TRN,
    PIPELINE_2D,
    PIPELINE_3D,
    PIPELINE_TRN,
    changed,
    make,
    references,
    with_step,
)

BOUND = 1e-4  # of the reference's spread over the classes
CLIP = with_step(PIPELINE_3D, 1, clip_len=8, frame_interval=4, num_clips=1)
RESNET = dict(num_segments=3, pretrained=None, norm_eval=False)

MVIT = changed(
    MODEL_3D,
    backbone=dict(
        type="MViT",
        arch=dict(embed_dims=8, num_layers=2, num_heads=1, downscale_indices=[1]),
        spatial_size=32,
        temporal_size=8,
        adaptive_kv_stride=(1, 2, 2),
    ),
    cls_head=dict(type="MViTHead", in_channels=16, num_classes=10, average_clips="prob"),
    test_cfg=dict(max_testing_views=2),
)
SWIN = changed(
    MODEL_3D,
    backbone=dict(
        type="SwinTransformer3D",
        arch=dict(embed_dims=8, depths=[2, 1], num_heads=[1, 2]),
        window_size=(2, 4, 4),
        out_indices=(1,),
    ),
)
TANET = changed(
    MODEL_2D,
    backbone=dict(
        type="TANet",
        depth=50,
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        tam_cfg=dict(),
        **RESNET,
    ),
    cls_head__type="TSMHead",
    cls_head__num_segments=3,
    cls_head__in_channels=256,
)
TIN = changed(
    MODEL_2D,
    backbone=dict(type="ResNetTIN", depth=18, shift_div=4, out_indices=(0,), **RESNET),
    cls_head__type="TSMHead",
    cls_head__num_segments=3,
)
CASES = {
    "mvit": (MVIT, CLIP),
    "swin": (SWIN, CLIP),
    "tanet": (TANET, PIPELINE_2D),
    "tin": (TIN, PIPELINE_2D),
    "trn": (MODEL_TRN, PIPELINE_TRN),
}


def test_every_family_with_a_change_of_its_own_has_a_case() -> None:
    own = {
        family.name
        for family in FAMILIES
        for change in (*family.decisions, *family.patches)
        if not change.__module__.endswith("._patches")
    }
    # OmniSource's extractor is put around a whole recognizer; tests/e2e/test_zoo.py holds it
    assert own - {"omnisource"} == set(CASES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A family's graph, and what mmaction2 makes of two videos: clips and scores by video."""

    path: str
    clips: NDArray[np.uint8]
    scores: NDArray[np.float32]

    def graph(self) -> Any:
        return onnx.load(self.path).graph


@pytest.fixture(scope="module", params=CASES)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return _traced(request.param, *CASES[request.param], tmp_path_factory.mktemp(request.param))


def _traced(name: str, model: Any, pipeline: Any, folder: Path) -> Traced:
    tiny = make(folder, model, pipeline)
    family = family_of(tiny.config.model, FAMILIES)
    assert family.name == name
    _train_positions(tiny.model)
    _cut_after_first_stage(tiny.model)
    decide(tiny.model, family)
    before = references(tiny)
    patch(tiny.model, family)
    views = tiny.contract.views
    flat = tiny.preprocessing.layout == "NCHW" or views_at_once(views) == views
    module = serving_module(
        tiny.model, layout=tiny.preprocessing.layout, average="prob", averaged=flat
    )
    graph = (onnx_from_module if flat else onnx_from_views)(
        module,
        clips=tiny.tensors.clips,
        scores=tiny.tensors.scores,
        opset=18,
        path=folder / "model.onnx",
    )
    return Traced(
        path=str(graph.path),
        clips=np.concatenate([reference.clips for reference in before]),
        scores=np.stack([reference.scores for reference in before]),
    )


def _train_positions(model: torch.nn.Module) -> None:
    """Position tables are zeros until they are trained."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "rel_pos" in name or "relative_position" in name:
            torch.nn.init.normal_(weight)


def _cut_after_first_stage(model: Any) -> None:
    """A ResNetTIN always has four stages, and runs them all whichever it gives."""
    if hasattr(model.backbone, "res_layers"):
        del model.backbone.res_layers[1:]


@pytest.mark.parametrize("videos", [[0], [1, 0], [0, 1, 1]], ids=len)
def test_a_batch_scores_as_mmaction2_scores_each_video(
    traced: Traced, videos: Sequence[int]
) -> None:
    session = onnxruntime.InferenceSession(traced.path, providers=["CPUExecutionProvider"])
    scores = session.run(["scores"], {"clips": traced.clips[videos]})[0]
    expected = traced.scores[videos]
    spread = np.ptp(expected, axis=1, keepdims=True)
    assert (np.abs(scores - expected) <= BOUND * spread).all()
    assert np.abs(traced.scores[0] - traced.scores[1]).max() > 100 * BOUND * spread.max()


@pytest.mark.parametrize("name", ["mvit", "swin"])
def test_a_loop_over_views_scores_as_mmaction2_in_both_runtimes(name: str, tmp_path: Path) -> None:
    model, pipeline = CASES[name]
    looped = _traced(name, model, with_step(pipeline, 1, num_clips=6), tmp_path)
    assert [node.op_type for node in looped.graph().node] == ["Loop", "ReduceMean"]
    session = onnxruntime.InferenceSession(looped.path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(
        looped.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    spread = np.ptp(looped.scores, axis=1, keepdims=True)
    for scores in (session.run(None, {"clips": looped.clips})[0], compiled(looped.clips)[0]):
        assert (np.abs(scores - looped.scores) <= BOUND * spread).all()


def test_nothing_is_scattered_looped_or_decided_while_it_runs(traced: Traced) -> None:
    found = Counter(node.op_type for node in traced.graph().node)
    assert not found.keys() & {"ScatterND", "ScatterElements", "Loop", "If", "Size"}


def test_a_reshape_has_a_constant_shape_where_one_axis_is_free(traced: Traced) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(traced.path)).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    constants = {value.name for value in graph.initializer}
    computed = [
        node for node in graph.node if node.op_type == "Reshape" and node.input[1] not in constants
    ]
    assert all(shapes[node.output[0]].count(0) > 1 for node in computed)


def test_no_weight_is_kept_twice(traced: Traced) -> None:
    kept = Counter(
        (value.data_type, tuple(value.dims), onnx.numpy_helper.to_array(value).tobytes())
        for value in traced.graph().initializer
    )
    assert set(kept.values()) == {1}
