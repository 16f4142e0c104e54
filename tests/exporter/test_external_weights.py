"""A model beyond protobuf's 2 GiB: the weights are a file of their own, and serve as well."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from action_export import api, onnx_file, source
from action_export.types import ExportRequest


def test_every_file_of_the_graph_is_published_proved_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered below the example's weights; the live server loads both files."""
    monkeypatch.setattr(onnx_file, "_LARGEST_WEIGHTS", 1_000_000)
    result = api.export(ExportRequest(triton_repo=tmp_path / "repo", proof="server"))
    assert result.checks[-1].name.startswith("live server")
    folder = result.repo / "example_recognizer" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    published = {str(path.relative_to(result.repo)) for path in result.repo.rglob("*.*")}
    assert set(result.files) == {path for path in published if (result.repo / path).is_file()}
    recorded = result.manifest["graph"]["files"]
    assert [file["file"] for file in recorded] == ["model.onnx", "model.onnx.data"]
    for file in recorded:
        assert file["bytes"] == (folder / file["file"]).stat().st_size
        assert file["sha256"] == source.file_sha256(folder / file["file"])
    assert recorded[0]["bytes"] < 1_000_000 < recorded[1]["bytes"]
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
