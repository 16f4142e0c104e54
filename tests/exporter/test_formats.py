"""Exports in other formats and precisions: what is published, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_rtx
from action_export import api, precision, tensorrt
from action_export.cli.show import next_commands
from action_export.errors import ContractChangedError, DependencyError, ParityError
from action_export.serve import serve
from action_export.types import EngineOptions, ExportRequest, ExportResult, StepEvent, Tensors
from google.protobuf import text_format
from support.tiny import MODEL_3D, PIPELINE_3D, VIDEOS, Tiny, make
from tritonclient.grpc import model_config_pb2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


@pytest.fixture
def request_(tiny: Tiny, tmp_path: Path) -> ExportRequest:
    return ExportRequest(
        triton_repo=tmp_path / "repo",
        config=str(tiny.config_file),
        checkpoint=tiny.checkpoint,
        name="tiny",
        videos=tuple(VIDEOS),
        proof="graph",
        settle_s=0,
    )


def recognizer(result: ExportResult) -> Path:
    return result.repo / "tiny_recognizer"


def read_config(result: ExportResult) -> Any:
    text = (recognizer(result) / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_manifest(result: ExportResult) -> Any:
    return json.loads((result.repo / "tiny" / str(result.version) / "manifest.json").read_text())


def loops(graph: Path) -> bool:
    """Over the six views."""
    return "Loop" in {node.op_type for node in onnx.load(graph).graph.node}


def test_each_precision_is_a_version_of_the_same_contract(request_: ExportRequest) -> None:
    single = api.export(request_)
    half = api.export(replace(request_, precision="fp16"))
    byte = api.export(replace(request_, precision="int8", calibration=tuple(VIDEOS)))
    assert [single.version, half.version, byte.version] == [1, 2, 3]
    files = [recognizer(r) / str(r.version) / "model.onnx" for r in (single, half, byte)]
    sizes = [path.stat().st_size for path in files]
    assert sizes == sorted(sizes, reverse=True)
    # the converters know flat graphs only
    assert [loops(path) for path in files] == [True, False, False]
    for result, kind in ((half, "fp16"), (byte, "int8")):
        assert read_manifest(result)["graph"]["precision"] == kind
        assert f"--precision {kind}" in read_manifest(result)["command"]
        checks = {check.name: check for check in result.checks}
        # the float32 graph is held to its own bound all the same
        assert checks["graph, batch 1"].bound == 1e-4
        assert checks[f"{kind} graph, batch 3"].bound == precision.BOUNDS[kind]  # type: ignore[index]
        assert sorted(path.name for path in result.repo.parent.iterdir()) == ["repo"]


def test_a_precision_that_costs_too_much_is_refused_with_its_worst_layers(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "BOUNDS", {"int8": 1e-6})
    with pytest.raises(ParityError) as caught:
        api.export(replace(request_, precision="int8", calibration=tuple(VIDEOS)))
    assert "more than its bound 1e-06" in caught.value.message
    assert "recognizer.backbone.layer1." in caught.value.message
    assert not request_.triton_repo.exists()


def test_the_accelerator_is_configured_and_the_server_without_a_gpu_serves_it(
    request_: ExportRequest,
) -> None:
    result = api.export(replace(request_, accelerate=True, proof="server"))
    (accelerator,) = read_config(
        result
    ).optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert "trt_profile_max_shapes" in accelerator.parameters
    warmup = {item.name: item for item in read_config(result).model_warmup}
    assert {name: item.batch_size for name, item in warmup.items()} == {"batch 1": 1, "batch 5": 5}
    for item in warmup.values():
        assert list(item.inputs["clips"].dims) == list(result.tensors.clips.dims)
    graph = onnx.load(str(recognizer(result) / "1" / "model.onnx")).graph
    assert [node.op_type for node in graph.node if "clips" in node.input] == ["Cast"]
    assert any("that engine is not" in note for note in result.notes)
    (serving, _) = next_commands(result)
    cache = accelerator.parameters["trt_engine_cache_path"]
    assert f"-v tiny-engines:{cache}" in serving
    assert "NVIDIA_TF32_OVERRIDE=0" in serving


# --- The plan of the container ------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """trtexec and nvidia-smi as the script meets them: the first writes its arguments as a plan."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "trtexec": """
            for word; do case $word in
              --help) echo "  --stronglyTyped  Create a strongly typed network"; exit ;;
              --saveEngine=*) plan=${word#*=} ;;
            esac; done
            printf '%s\\n' "$@" >"$plan"
            [ -z "${FAIL:-}" ]
        """,
        "nvidia-smi": 'echo "$CAPABILITY"',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CAPABILITY": "9.0"}


def run_script(
    result: ExportResult, environment: dict[str, str], **changes: str
) -> subprocess.CompletedProcess[str]:
    script = recognizer(result) / "1" / "build_plan.sh"
    return subprocess.run(
        ["bash", str(script)],
        env={**environment, **changes},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_script_builds_the_plan_that_the_config_names(
    request_: ExportRequest, tools: dict[str, str]
) -> None:
    result = api.export(replace(request_, format="tensorrt", plan_in_container=True))
    folder = recognizer(result) / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["build_plan.sh", "model.onnx"]
    config = read_config(result)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert not config.cc_model_filenames
    assert any("is not" in note and "build_plan.sh" in note for note in result.notes)
    script, serving, client = next_commands(result)
    assert script.endswith("bash /repo/tiny_recognizer/1/build_plan.sh")
    assert "tritonserver:24.10-py3" in serving
    assert client.startswith("action-client")

    done = run_script(result, tools)
    assert (done.returncode, done.stderr) == (0, "")
    words = (folder / "model.plan").read_text().splitlines()
    dims = "x".join(map(str, result.tensors.clips.dims))
    most = result.tensors.clips.max_batch_size
    assert "--onnx=model.onnx" in words
    assert "--stronglyTyped" in words
    assert f"--minShapes=clips:1x{dims}" in words
    assert f"--maxShapes=clips:{most}x{dims}" in words


def test_each_kind_of_gpu_gets_a_plan_of_its_own(
    request_: ExportRequest, tools: dict[str, str]
) -> None:
    gpus = ("8.6", "9.0")
    asked = replace(request_, format="tensorrt", plan_in_container=True, gpus=gpus)
    result = api.export(asked)
    folder = recognizer(result) / "1"
    names = dict(read_config(result).cc_model_filenames)
    assert sorted(names) == list(gpus)
    for gpu in gpus:
        assert run_script(result, tools, CAPABILITY=gpu).returncode == 0
        assert (folder / names[gpu]).is_file()
    other = run_script(result, tools, CAPABILITY="7.5")
    assert other.returncode == 1
    assert "no plan for compute capability 7.5, but for 8.6, 9.0" in other.stderr


def test_a_trtexec_that_does_not_know_the_level_says_so(
    request_: ExportRequest, tools: dict[str, str]
) -> None:
    engine = EngineOptions(hardware_compatible="same_compute_capability")
    result = api.export(replace(request_, format="tensorrt", plan_in_container=True, engine=engine))
    done = run_script(result, tools)
    assert done.returncode == 1
    assert "does not know sameComputeCapability" in done.stderr


def test_a_build_that_fails_leaves_no_plan(request_: ExportRequest, tools: dict[str, str]) -> None:
    result = api.export(replace(request_, format="tensorrt", plan_in_container=True))
    before = sorted((recognizer(result) / "1").iterdir())
    assert run_script(result, tools, FAIL="yes").returncode != 0
    assert sorted((recognizer(result) / "1").iterdir()) == before
    outside = run_script(result, {**os.environ, "PATH": "/usr/bin:/bin"})
    assert outside.returncode == 1
    assert "there is no trtexec" in outside.stderr


def test_a_server_without_the_backend_is_not_even_started(request_: ExportRequest) -> None:
    result = api.export(replace(request_, format="tensorrt", plan_in_container=True))
    with (
        pytest.raises(DependencyError, match="tiny_recognizer needs the backend 'tensorrt'"),
        serve(result.repo),
    ):
        pass


# --- The plan of this machine -------------------------------------------------------------------


def test_a_plan_is_built_proved_and_published(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX builds it; ONNX Runtime stands in for the GPU that would run it."""
    steps: list[StepEvent] = []
    ran: list[str] = []

    def runner(plan: Path, tensors: Tensors, *_: Any) -> Any:
        ran.append(plan.name)
        assert plan.stat().st_size > 1000
        graph = plan.parents[2] / "fp16.onnx"
        session = onnxruntime.InferenceSession(graph)
        return lambda batch: session.run(None, {tensors.clips.name: batch})[0]

    monkeypatch.setattr(tensorrt, "installed", lambda _: tensorrt_rtx)
    monkeypatch.setattr(api, "Gpu", lambda: SimpleNamespace(compute_capability="8.9"))
    monkeypatch.setattr(tensorrt, "Runner", runner)
    monkeypatch.setattr(api, "check_tensorrt", lambda *_, **__: None)
    asked = replace(
        request_,
        format="tensorrt",
        precision="fp16",
        proof="auto",
    )
    result = api.export(asked, steps.append)
    assert ran == ["model.plan"]
    assert [path.name for path in (recognizer(result) / "1").iterdir()] == ["model.plan"]
    assert "tiny_recognizer/1/model.plan" in result.files
    assert not any(path.endswith(".onnx") for path in result.files)
    engine = read_manifest(result)["engine"]
    assert engine["tensorrt"] == tensorrt_rtx.__version__
    assert engine["compute_capability"] == "8.9"
    assert engine["profile"]["most"] == list(result.tensors.clips.shape(5))
    assert engine["file"]["bytes"] == (recognizer(result) / "1" / "model.plan").stat().st_size
    assert engine["seconds"] >= 0
    assert {check.bound for check in result.checks if check.name.startswith("plan, batch")} == {
        precision.BOUNDS["fp16"]
    }
    finished = {step.step: step.result for step in steps if step.result is not None}
    assert "skipped: tiny_recognizer needs the backend 'tensorrt'" in str(finished["prove server"])
    assert any(step.step == "build plan" and step.phase for step in steps)


def test_a_plan_that_scores_differently_is_not_published(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(plan: Path, tensors: Tensors, *_: Any) -> Any:
        return lambda batch: np.full(tensors.scores.shape(len(batch)), 0.1, np.float32)

    monkeypatch.setattr(tensorrt, "installed", lambda _: tensorrt_rtx)
    monkeypatch.setattr(api, "Gpu", lambda: SimpleNamespace(compute_capability="8.9"))
    monkeypatch.setattr(tensorrt, "Runner", runner)
    monkeypatch.setattr(api, "check_tensorrt", lambda *_, **__: None)
    asked = replace(request_, format="tensorrt")
    with pytest.raises(ParityError, match="plan, batch 1"):
        api.export(asked)
    assert not request_.triton_repo.exists()


def test_a_precision_that_only_the_plan_breaks_names_its_layers(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(plan: Path, tensors: Tensors, *_: Any) -> Any:
        return lambda batch: np.full(tensors.scores.shape(len(batch)), np.nan, np.float32)

    monkeypatch.setattr(tensorrt, "installed", lambda _: tensorrt_rtx)
    monkeypatch.setattr(api, "Gpu", lambda: SimpleNamespace(compute_capability="8.9"))
    monkeypatch.setattr(tensorrt, "Runner", runner)
    monkeypatch.setattr(api, "check_tensorrt", lambda *_, **__: None)
    with pytest.raises(ParityError, match="the layers that lose most") as caught:
        api.export(replace(request_, format="tensorrt", precision="fp16"))
    assert "--precision fp32" in caught.value.hint


def test_another_backend_is_no_version_of_the_same_model(request_: ExportRequest) -> None:
    api.export(request_)
    with pytest.raises(ContractChangedError, match="backend of tiny_recognizer"):
        api.export(replace(request_, format="tensorrt", plan_in_container=True))


def test_a_plan_is_planned_without_tensorrt(request_: ExportRequest) -> None:
    planned = api.export(replace(request_, format="tensorrt", dry_run=True))
    assert "tiny_recognizer/1/model.plan" in planned.files
    assert not request_.triton_repo.exists()


def test_without_tensorrt_nothing_is_even_loaded(request_: ExportRequest) -> None:
    steps: list[StepEvent] = []
    with pytest.raises(DependencyError, match="TensorRT cannot be used here"):
        api.export(replace(request_, format="tensorrt"), steps.append)
    assert not steps
