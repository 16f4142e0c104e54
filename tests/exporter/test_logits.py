"""The logits of a written graph are mmaction2's, and getting at them leaves the file as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from action_export import precision
from action_export.graph import serving_module
from action_export.logits import with_logits
from action_export.onnx_file import outline
from action_export.tracing import Graph, onnx_from_module, onnx_from_views
from support.tiny import MODEL_2D, MODEL_3D, PIPELINE_2D, PIPELINE_3D, Tiny, make, references


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


def traced(tiny: Tiny, path: Path, *, looped: bool = False, **how: Any) -> Graph:
    how = {"layout": "NCTHW", "average": "prob", "averaged": not looped, **how}
    module = serving_module(tiny.model, **how)
    write = onnx_from_views if looped else onnx_from_module
    specs = dict(clips=tiny.tensors.clips, scores=tiny.tensors.scores)
    return write(module, **specs, opset=18, path=path)  # type: ignore[arg-type]


def logits_of(path: Path, clips: Any) -> np.ndarray[Any, Any]:
    with with_logits(path) as probe:
        assert probe is not None
        session = onnxruntime.InferenceSession(probe.path)
        scores, given = session.run(None, {"clips": clips})
        plain = onnxruntime.InferenceSession(path).run(None, {"clips": clips})[0]
        np.testing.assert_allclose(scores, plain, atol=1e-6)
        return probe.of_videos(given)


@pytest.mark.parametrize(
    ("looped", "how"),
    [(False, {}), (True, {}), (False, {"scores": "sigmoid"}), (True, {"scores": "sigmoid"})],
    ids=["flat", "looped", "sigmoid", "looped sigmoid"],
)
def test_they_are_those_of_mmactions_head_view_by_view(
    tiny: Tiny, tmp_path: Path, looped: bool, how: dict[str, Any]
) -> None:
    graph = traced(tiny, tmp_path / "model.onnx", looped=looped, **how)
    rows = references(tiny)
    given = logits_of(graph.path, np.concatenate([row.clips for row in rows]))
    assert given.shape == (2, 6, 10)
    for logits, row in zip(given, rows, strict=True):
        np.testing.assert_allclose(logits, row.logits, atol=1e-5)
    assert not np.allclose(given[0], given[1], atol=0.1)


def test_of_a_2d_model_they_are_one_row_for_the_video(tmp_path: Path) -> None:
    tiny = make(tmp_path, MODEL_2D, PIPELINE_2D)
    graph = traced(tiny, tmp_path / "model.onnx", layout="NCHW")
    rows = references(tiny)
    given = logits_of(graph.path, np.concatenate([row.clips for row in rows]))
    assert given.shape == (2, 1, 10)
    for logits, row in zip(given, rows, strict=True):
        np.testing.assert_allclose(logits, row.logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_a_reduced_graph_has_them_too(tiny: Tiny, tmp_path: Path, kind: Any) -> None:
    exact = traced(tiny, tmp_path / "model.onnx")
    rows = references(tiny)
    clips = [row.clips for row in rows]
    graph, _ = precision.reduced(exact, tmp_path / "reduced.onnx", kind, clips, len(clips))
    if kind == "fp16":
        graph = precision.rounding_twin(graph, tmp_path / "rounding.onnx")
    for row in rows:
        (given,) = logits_of(graph.path, row.clips)
        assert 0 < np.abs(given - row.logits).max() < 0.2 * np.ptp(row.logits)


@pytest.mark.parametrize("looped", [False, True])
def test_scores_that_cannot_saturate_are_left_alone(
    tiny: Tiny, tmp_path: Path, looped: bool
) -> None:
    graph = traced(tiny, tmp_path / "model.onnx", looped=looped, average="score")
    with with_logits(graph.path) as probe:
        assert probe is None


def test_the_file_is_left_as_it_is_and_its_weights_where_they_are(
    tiny: Tiny, tmp_path: Path
) -> None:
    graph = traced(tiny, tmp_path / "model.onnx")
    before = graph.path.read_bytes()
    with with_logits(graph.path) as probe:
        assert probe is not None
        assert probe.path.stat().st_size < len(before) / 4
        assert probe.path.parent == tmp_path
    assert list(tmp_path.iterdir()) == [graph.path]
    assert graph.path.read_bytes() == before


def test_an_outline_is_the_model_with_its_weights_elsewhere(tiny: Tiny, tmp_path: Path) -> None:
    graph = traced(tiny, tmp_path / "model.onnx")
    found = outline(graph.path)
    large = [tensor for tensor in found.graph.initializer if tensor.external_data]
    assert large
    (tmp_path / "outline.onnx").write_bytes(found.SerializeToString())
    whole, again = onnx.load(graph.path), onnx.load(tmp_path / "outline.onnx")
    for tensor in again.graph.initializer:
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    assert again == whole


def test_weights_beside_a_file_stay_there(tiny: Tiny, tmp_path: Path) -> None:
    graph = traced(tiny, tmp_path / "model.onnx")
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(graph.path), split, save_as_external_data=True, location="split.onnx.data")
    row = references(replace(tiny))[0]
    (given,) = logits_of(split, row.clips)
    np.testing.assert_allclose(given, row.logits, atol=1e-5)
