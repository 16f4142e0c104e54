"""Exports for Triton's OpenVINO backend: what is written, proved, and served in which precision."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as runtime
import pytest
from action_client import VideoClient
from action_export import api, live, openvino, precision, proof
from action_export.errors import DependencyError, EngineError, ParityError
from action_export.serve import serve
from action_export.serve.backends import openvino_network as network
from action_export.tracing import Graph
from action_export.types import Check, ExportRequest, ExportResult
from support.tiny import MODEL_3D, PIPELINE_3D, VIDEOS, Tiny, make, references

# Of a CPU with AVX-512 that has no bf16, the hint brings it, and nothing else does.
NEEDS_BF16 = pytest.mark.skipif(
    not openvino.has_bf16(hinted=True), reason="OpenVINO does not compute in bf16 on this CPU"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


@pytest.fixture(scope="module")
def request_(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> ExportRequest:
    return ExportRequest(
        triton_repo=tmp_path_factory.mktemp("openvino") / "repo",
        config=str(tiny.config_file),
        checkpoint=tiny.checkpoint,
        name="exact",
        videos=tuple(VIDEOS),
        format="openvino",
        proof="graph",
    )


@pytest.fixture(scope="module")
def exact(request_: ExportRequest) -> ExportResult:
    return api.export(request_)


@pytest.fixture(scope="module")
def hinted(request_: ExportRequest, exact: ExportResult) -> ExportResult:
    """In the same repository."""
    return api.export(replace(request_, name="hinted", precision="bf16"))


@pytest.fixture(scope="module")
def onnx(request_: ExportRequest, exact: ExportResult) -> ExportResult:
    """In the same repository, for ONNX Runtime."""
    return api.export(replace(request_, name="onnx", format="onnx"))


def bounds(result: ExportResult) -> dict[str, float]:
    return {check.name: check.bound for check in result.checks if "OpenVINO" in check.name}


def served_config(result: ExportResult) -> Any:
    return openvino.served_config(result.repo / f"{result.name}_recognizer" / "config.pbtxt")


def test_the_ir_is_published_and_nothing_else(exact: ExportResult) -> None:
    folder = exact.repo / "exact_recognizer" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]
    published = {"exact_recognizer/1/model.bin", "exact_recognizer/1/model.xml"}
    assert published <= set(exact.files)
    manifest = json.loads((exact.repo / "exact" / "1" / "manifest.json").read_text("utf-8"))
    assert [file["file"] for file in manifest["graph"]["files"]] == ["model.xml", "model.bin"]
    assert "--format openvino" in manifest["command"]
    assert manifest["packages"]["openvino"] in runtime.__version__
    assert sorted(path.name for path in exact.repo.parent.iterdir()) == ["repo"]


def test_the_config_is_one_that_the_official_backend_loads(
    exact: ExportResult, hinted: ExportResult
) -> None:
    config = served_config(exact)
    assert (config["backend"], config["default_model_filename"]) == ("openvino", "model.xml")
    assert config["max_batch_size"] == 1
    assert "dynamic_batching" not in config
    # on any other kind of instance it refuses the model
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert "HINT_BF16" not in config["parameters"]
    assert served_config(hinted)["parameters"]["HINT_BF16"] == {"string_value": "YES"}


@pytest.mark.cpu
def test_openvino_is_asked_whether_it_computes_in_bf16() -> None:
    listed = runtime.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert openvino.has_bf16() == ("BF16" in listed)
    assert openvino.has_bf16(hinted=True) >= openvino.has_bf16()


def test_weights_stay_in_float32(exact: ExportResult) -> None:
    model = runtime.Core().read_model(exact.repo / "exact_recognizer" / "1" / "model.xml")
    outputs = [output for op in model.get_ops() for output in op.outputs()]
    types = {output.get_element_type().to_string() for output in outputs}
    assert "f32" in types
    assert not types & {"f16", "bf16"}


def test_the_ir_says_which_axis_is_the_batch(exact: ExportResult) -> None:
    model = runtime.Core().read_model(exact.repo / "exact_recognizer" / "1" / "model.xml")
    layouts = [port.node.layout for port in (*model.inputs, *model.outputs)]
    assert layouts == [runtime.Layout("N...")] * 2


@pytest.mark.cpu
def test_what_the_official_backend_may_compute_is_proved_too(
    exact: ExportResult, hinted: ExportResult
) -> None:
    f32 = {"OpenVINO in f32, batch 1": 1e-4}
    bf16 = {"OpenVINO in bf16, batch 1": 40 * 2**-8}
    assert bounds(exact) == f32 | (bf16 if openvino.has_bf16() else {})
    assert bounds(hinted) == f32 | (bf16 if openvino.has_bf16(hinted=True) else {})
    assert any("no setting for float32" in note for note in exact.notes)
    assert not any("no setting for float32" in note for note in hinted.notes)
    assert any("counts on the CPU that serves" in note for note in hinted.notes)
    assert not any("counts on the CPU that serves" in note for note in exact.notes)


@pytest.mark.parametrize(
    ("asked", "proved", "native", "said"),
    [
        (True, True, True, ["counts on the CPU that serves"]),
        (True, True, False, ["counts on the CPU that serves", "slower than float32"]),
        (True, False, False, ["proved in float32 only", "counts on the CPU that serves"]),
        (False, True, True, []),
        (False, False, False, ["proved in float32 only"]),
    ],
)
def test_what_bf16_costs_is_said_of_the_cpu_that_serves_and_of_this_one(
    asked: bool, proved: bool, native: bool, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda **_: native)
    notes = openvino.notes_on_bf16(asked=asked, proved=proved)
    assert [words in note for words, note in zip(said, notes, strict=True)] == [True] * len(said)


def test_one_server_answers_in_both_formats_and_precisions(
    tiny: Tiny, exact: ExportResult, hinted: ExportResult, onnx: ExportResult
) -> None:
    wanted = np.concatenate([reference.scores for reference in references(tiny)])
    wanted = wanted.reshape(len(VIDEOS), -1)
    got = {}
    with serve(exact.repo) as server:
        for name in ("exact", "hinted", "onnx"):
            with VideoClient(server.grpc_url, name) as client:
                got[name] = np.stack([client.classify(video).scores for video in VIDEOS])
        log = server.log_text()
    spread = np.ptp(wanted, axis=1, keepdims=True)
    errors = {name: np.abs((scores - wanted) / spread).max() for name, scores in got.items()}
    assert errors["exact"] < 1e-4
    assert errors["onnx"] < 1e-4
    assert "exact_recognizer runs with OpenVINO in f32" in log
    assert "onnx_recognizer runs with CPUExecutionProvider" in log
    slow = openvino.has_bf16(hinted=True) and not openvino.has_bf16()
    assert (f"hinted_recognizer: {network.SLOW_BF16}" in log) == slow
    decisions = {name: scores.argmax(axis=1).tolist() for name, scores in got.items()}
    assert decisions["exact"] == decisions["onnx"] == wanted.argmax(axis=1).tolist()
    if openvino.has_bf16(hinted=True):
        assert 1e-4 < errors["hinted"] < precision.BOUNDS["bf16"]
        assert "hinted_recognizer runs with OpenVINO in bf16" in log
    else:
        assert errors["hinted"] < 1e-4
        assert "hinted_recognizer runs with OpenVINO in f32" in log


@NEEDS_BF16
def test_bf16_that_costs_too_much_is_refused(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "BOUNDS", {"bf16": 1e-6})
    asked = replace(request_, triton_repo=tmp_path / "repo", precision="bf16")
    with pytest.raises(ParityError, match="OpenVINO in bf16, batch 1 is off by") as caught:
        api.export(asked)
    assert caught.value.hint == "nothing was published; --format onnx"
    assert not asked.triton_repo.exists()


def test_a_cpu_without_bf16_proves_float32_and_says_so(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda **_: False)
    asked = replace(request_, triton_repo=tmp_path / "repo", precision="bf16")
    result = api.export(asked)
    assert list(bounds(result)) == ["OpenVINO in f32, batch 1"]
    assert any("proved in float32 only" in note for note in result.notes)
    assert any("proved in float32 only" in note for note in result.manifest["notes"])


def test_bf16_that_only_the_hint_brings_is_proved_where_it_is_asked_for(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda *, hinted=False: hinted)
    asked = replace(request_, triton_repo=tmp_path / "repo", precision="bf16")
    assert "OpenVINO in bf16, batch 1" in bounds(api.export(asked))


@pytest.mark.parametrize(
    ("official", "has_bf16", "bound"),
    [(True, True, 40 * 2**-8), (True, False, 1e-4), (False, True, 1e-4)],
)
def test_a_server_with_the_official_backend_may_answer_in_bf16(
    official: bool, has_bf16: bool, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = SimpleNamespace(openvino=True)
    job = SimpleNamespace(runtime=runtime, bound=1e-4, wire_bound=0.0, widest_bound=40 / 256)
    monkeypatch.setattr(live, "has_official_backends", lambda: official)
    monkeypatch.setattr(openvino, "has_bf16", lambda **_: has_bf16)
    assert proof.live_bound(job) == bound  # type: ignore[arg-type]


def test_a_tritonserver_on_path_has_the_official_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not live.has_official_backends()
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert live.has_official_backends()


def test_a_wrong_float32_is_no_matter_of_bf16() -> None:
    exact, half = (
        Check(name=f"OpenVINO in {kind}, batch 1", error=0.1, bound=bound, unit="of spread")
        for kind, bound in (("f32", 1e-4), ("bf16", 0.156))
    )
    openvino.require((half,))
    with pytest.raises(ParityError, match="differs from mmaction2: OpenVINO in f32"):
        openvino.require((exact, half))


def test_without_openvino_nothing_is_even_loaded(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = api.dependencies.importlib.util.find_spec
    monkeypatch.setattr(
        api.dependencies.importlib.util,
        "find_spec",
        lambda name: None if name == "openvino" else find(name),
    )
    asked = replace(request_, triton_repo=tmp_path / "repo")
    steps: list[Any] = []
    with pytest.raises(DependencyError) as caught:
        api.export(asked, steps.append)
    assert caught.value.hint == 'pip install "action-export[openvino]"'
    assert not steps
    assert api.export(replace(asked, dry_run=True)).tensors.clips.max_batch_size == 1


def test_a_graph_that_openvino_does_not_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x09\x12")
    graph = Graph(path=path, opset=18, nodes=0, files=(path.name,))
    with pytest.raises(EngineError, match="OpenVINO does not read the graph") as caught:
        openvino.ir_of(graph, tmp_path / "model.xml")
    assert caught.value.hint == "--format onnx"
