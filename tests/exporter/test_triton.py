"""What a release can load, and how a request turns into a runtime of the recognizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from action_export.errors import UnsupportedError
from action_export.triton import check_tensorrt, recognizer_runtime, tensorrt_of
from action_export.types import EngineOptions, ExportRequest, TensorSpec

CLIPS = TensorSpec(name="clips", dtype="UINT8", dims=(2, 8, 32, 32, 3), max_batch_size=4)
MIN, MAX = "clips:1x2x8x32x32x3", "clips:4x2x8x32x32x3"


def request(tmp_path: Path, **changes: object) -> ExportRequest:
    return ExportRequest(triton_repo=tmp_path, **changes)  # type: ignore[arg-type]


def plan_request(version: str, *, version_compatible: bool = False) -> ExportRequest:
    engine = EngineOptions(version_compatible=version_compatible)
    return request(Path("repo"), format="tensorrt", triton_version=version, engine=engine)


@pytest.mark.parametrize(
    ("built", "version", "version_compatible"),
    [
        ("10.5.0", "24.10", False),
        ("10.5.0.18", "24.10", False),
        ("10.13.3.9.post1", "25.10", False),
        ("10.5.0.18", "25.10", True),
        ("10.5.0", "24.10", True),
    ],
)
def test_a_plan_of_the_same_release_is_loaded(
    built: str, version: str, version_compatible: bool
) -> None:
    asked = plan_request(version, version_compatible=version_compatible)
    check_tensorrt(built, tensorrt_of(asked), asked)


@pytest.mark.parametrize(
    ("built", "version", "version_compatible", "fix"),
    [
        (
            "10.6.0.26",
            "24.10",
            False,
            '--triton-version 24.11, or pip install "tensorrt==10.5.0.18.*", or '
            "--plan-in-container",
        ),
        # of two releases with the same one, the newer
        ("10.9.0.34", "24.10", False, "--triton-version 25.04"),
        # TensorRT compares the number of the build, too
        (
            "10.5.0.19",
            "24.10",
            False,
            'pip install "tensorrt==10.5.0.18.*", or --plan-in-container',
        ),
        # newer than the server's, and of another major version
        ("10.6.0.26", "24.10", True, "--triton-version 24.11"),
        ("11.0.0.114", "26.05", True, 'pip install "tensorrt==10.16.1.11.*"'),
    ],
)
def test_another_release_is_refused_with_those_that_fit(
    built: str, version: str, version_compatible: bool, fix: str
) -> None:
    asked = plan_request(version, version_compatible=version_compatible)
    with pytest.raises(UnsupportedError) as caught:
        check_tensorrt(built, tensorrt_of(asked), asked)
    assert f"TensorRT {built} is installed, and Triton {version} has " in caught.value.message
    assert fix in caught.value.hint


def test_a_release_that_is_not_in_the_table_is_not_guessed_but_can_be_told() -> None:
    asked = plan_request("29.01")
    with pytest.raises(UnsupportedError) as caught:
        tensorrt_of(asked)
    assert "--server-tensorrt VERSION" in caught.value.hint
    assert "--plan-in-container" in caught.value.hint
    told = replace(asked, server_tensorrt="11.0.0.114")
    check_tensorrt("11.0.0.114", tensorrt_of(told), told)
    with pytest.raises(UnsupportedError, match=r"Triton 29\.01 has 11\.0\.0\.114"):
        check_tensorrt("11.1.0.5", tensorrt_of(told), told)
    with pytest.raises(UnsupportedError, match="no release of TensorRT"):
        tensorrt_of(replace(asked, server_tensorrt="eleven"))


def test_onnx_runtime_is_what_nothing_else_was_asked_for(tmp_path: Path) -> None:
    runtime = recognizer_runtime(request(tmp_path), CLIPS, "1a2b")
    assert (runtime.backend, runtime.file, runtime.writes) == ("onnxruntime", *["model.onnx"] * 2)
    assert (runtime.tensorrt, runtime.builds, runtime.script) == (False, False, None)


@pytest.mark.parametrize(("precision", "hint"), [("fp32", {}), ("bf16", {"HINT_BF16": "YES"})])
def test_openvino_computes_with_all_cores_on_one_request(
    precision: str, hint: dict[str, str], tmp_path: Path
) -> None:
    asked = request(tmp_path, format="openvino", precision=precision)
    runtime = recognizer_runtime(asked, CLIPS, "1a2b")
    assert (runtime.backend, runtime.file, runtime.writes) == ("openvino", *["model.xml"] * 2)
    assert (runtime.openvino, runtime.tensorrt, runtime.builds) == (True, False, False)
    latency = {"NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    assert dict(runtime.parameters) == {**latency, **hint}


def test_the_accelerator_gets_precision_shapes_and_places_for_its_caches(tmp_path: Path) -> None:
    engine = EngineOptions(workspace_mib=256, level=2)
    asked = request(tmp_path, accelerate=True, precision="fp16", engine=engine)
    runtime = recognizer_runtime(asked, CLIPS, "1a2b")
    assert (runtime.backend, runtime.writes, runtime.builds) == ("onnxruntime", "model.onnx", False)
    assert runtime.tensorrt
    parameters = dict(runtime.accelerator)
    caches = {parameters.pop(f"trt_{kind}_cache_path") for kind in ("engine", "timing")}
    # of this graph alone: ONNX Runtime does not look at weights
    assert caches == {"/tmp/action-export-tensorrt-1a2b"}
    assert parameters == {
        "max_workspace_size_bytes": str(256 * 2**20),
        "trt_builder_optimization_level": "2",
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_profile_min_shapes": MIN,
        "trt_profile_opt_shapes": MAX,
        "trt_profile_max_shapes": MAX,
    }
    assert runtime.warmup == (1, 4)


def test_a_plan_of_this_machine_is_written_as_such(tmp_path: Path) -> None:
    runtime = recognizer_runtime(request(tmp_path, format="tensorrt"), CLIPS, "1a2b")
    assert (runtime.backend, runtime.file, runtime.writes) == ("tensorrt", *["model.plan"] * 2)
    assert (runtime.tensorrt, runtime.builds, runtime.script) == (True, True, None)


def test_a_plan_of_the_container_comes_from_the_graph_and_a_script(tmp_path: Path) -> None:
    engine = EngineOptions(
        level=4, workspace_mib=64, version_compatible=True, hardware_compatible="ampere_plus"
    )
    asked = request(
        tmp_path,
        format="tensorrt",
        plan_in_container=True,
        gpus=("8.6", "9.0"),
        engine=engine,
        triton_version="25.03",
    )
    runtime = recognizer_runtime(asked, CLIPS, "1a2b")
    assert (runtime.backend, runtime.file, runtime.writes) == (
        "tensorrt",
        "model.plan",
        "model.onnx",
    )
    assert (runtime.tensorrt, runtime.builds) == (True, False)
    assert dict(runtime.plans) == {"8.6": "model_8.6.plan", "9.0": "model_9.0.plan"}
    assert runtime.script is not None
    assert runtime.script.image == "25.03-py3"
    assert runtime.server_flags == ("--backend-config=tensorrt,version-compatible=true",)
    assert runtime.script.flags == (
        f"--minShapes={MIN}",
        f"--optShapes={MAX}",
        f"--maxShapes={MAX}",
        "--noTF32",
        "--builderOptimizationLevel=4",
        "--memPoolSize=workspace:64",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=ampere+",
    )


def test_a_level_that_not_every_trtexec_knows_is_looked_for(tmp_path: Path) -> None:
    engine = EngineOptions(hardware_compatible="same_compute_capability")
    asked = request(tmp_path, format="tensorrt", plan_in_container=True, engine=engine)
    script = recognizer_runtime(asked, CLIPS, "1a2b").script
    assert script is not None
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in script.flags
    assert script.needs == "sameComputeCapability"
