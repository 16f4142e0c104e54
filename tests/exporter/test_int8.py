"""The scales of int8 come from the videos that were given, from all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from action_export import api, int8
from action_export.errors import ParityError, VideoError
from action_export.graph import serving_module
from action_export.tracing import onnx_from_module
from action_export.types import ExportRequest
from onnx import numpy_helper
from support.tiny import MODEL_3D, PIPELINE_3D, VIDEOS, Tiny, make, references
from support.videos import real_videos


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


@pytest.fixture(scope="module")
def graph(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    module = serving_module(tiny.model, layout="NCTHW", average="prob")
    specs = dict(clips=tiny.tensors.clips, scores=tiny.tensors.scores)
    onnx_from_module(module, **specs, opset=18, path=path)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def clips(tiny: Tiny) -> list[Any]:
    """Of two videos, and of the second one with a quarter of its contrast between them."""
    first, second = (row.clips for row in references(tiny))
    return [first, (second // 4 + 96).astype(np.uint8), second]


def scales(path: Path) -> dict[str, float]:
    written = onnx.load(path).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.initializer}
    return {
        node.input[0]: float(values[node.input[1]])
        for node in written.node
        if node.op_type == "QuantizeLinear"
    }


def test_scales_are_the_widest_that_any_of_the_videos_needs(
    graph: Path, clips: list[Any], tmp_path: Path
) -> None:
    int8.int8(graph, tmp_path / "all.onnx", clips, 3)
    alone = []
    for number, rows in enumerate(clips):
        int8.int8(graph, tmp_path / f"{number}.onnx", [rows], 1)
        alone.append(scales(tmp_path / f"{number}.onnx"))
    together = scales(tmp_path / "all.onnx")
    assert len(together) > 3
    for name, scale in together.items():
        assert scale == pytest.approx(max(each[name] for each in alone), rel=1e-4)
    assert any(alone[0][name] != pytest.approx(alone[2][name], rel=0.01) for name in together)


def test_a_video_that_was_not_measured_is_missed(
    graph: Path, clips: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match="measured on 2 of 3 videos"):
        int8.int8(graph, tmp_path / "int8.onnx", clips[:2], 3)


@pytest.mark.parametrize("zeroed", [[0, 1, 2], [0], [2]], ids=["all", "first", "last"])
def test_scales_from_other_values_than_the_videos_are_refused(
    graph: Path,
    clips: list[Any],
    tmp_path: Path,
    zeroed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is fed is not what was read."""
    feed = int8._Reader.get_next

    def wrong(self: Any) -> Any:
        fed = feed(self)
        if fed is None or self.count - 1 not in zeroed:
            return fed
        return {name: np.zeros_like(rows) for name, rows in fed.items()}

    monkeypatch.setattr(int8._Reader, "get_next", wrong)
    with pytest.raises(ParityError, match=r"scale ends at") as caught:
        int8.int8(graph, tmp_path / "int8.onnx", clips, 3)
    assert "recognizer." in caught.value.message


def test_a_video_without_any_picture_is_refused(
    graph: Path, clips: list[Any], tmp_path: Path
) -> None:
    black = np.zeros_like(clips[0])
    with pytest.raises(VideoError, match="number 2 of the calibration videos is 0 in every pixel"):
        int8.int8(graph, tmp_path / "int8.onnx", [clips[0], black], 2)


def test_it_is_proved_on_videos_that_no_scale_was_measured_on_where_there_are_two(
    tiny: Tiny, tmp_path: Path
) -> None:
    seen, *unseen = (*VIDEOS[:1], *VIDEOS[1:], real_videos()[0])
    request = ExportRequest(
        config=str(tiny.config_file),
        checkpoint=tiny.checkpoint,
        triton_repo=tmp_path / "repo",
        precision="int8",
        calibration=(seen,),
        videos=(seen, *unseen),
        proof="graph",
    )
    result = api.export(request)
    rows = {check.name: check.detail for check in result.checks}
    assert rows["graph, batch 1"] == "3 rows"
    assert rows["int8 graph, batch 1"] == "2 rows"
    assert "int8 graph, logits" not in rows  # its scores tell
    videos = [video["file"] for video in result.manifest["proof"]["videos"]]
    assert videos == [*(video.name for video in unseen), seen.name]
    assert not any("its scales were measured on" in note for note in result.notes)
    assert any("docs/tensorrt.md" in note for note in result.notes)

    again = api.export(replace(request, videos=(seen, unseen[0])))
    assert any("its scales were measured on" in note for note in again.notes)


def test_logits_are_compared_where_saturated_scores_would_hide_what_int8_costs(
    tiny: Tiny, tmp_path: Path
) -> None:
    saved = torch.load(tiny.checkpoint, weights_only=False)
    saved["state_dict"]["cls_head.fc_cls.weight"] *= 20
    torch.save(saved, tmp_path / "wide.pth")
    request = ExportRequest(
        config=str(tiny.config_file),
        checkpoint=tmp_path / "wide.pth",
        triton_repo=tmp_path / "repo",
        precision="int8",
        calibration=tuple(VIDEOS),
        videos=tuple(VIDEOS),
        proof="graph",
    )
    result = api.export(request)
    errors = {check.name: check.error for check in result.checks}
    assert 0 < errors["int8 graph, logits"] < 0.15
    assert any("saturated" in note for note in result.notes)
