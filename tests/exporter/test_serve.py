"""The embedded server serves what a repository says, refuses what is wrong, leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from action_export.errors import DependencyError, RepositoryError, ServeError
from action_export.serve import Server, ServerOptions, installation, memory, serve
from action_export.serve.installation import KEEP_MEMORY, Installation, environment
from action_export.serve.log import load_errors
from onnx import TensorProto, numpy_helper
from onnx import helper as oh
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

# --- Repositories -------------------------------------------------------------------------------


def write_model(repo: Path, name: str, config: str) -> Path:
    """A model with one, empty, version; returns the version's folder."""
    version = repo / name / "1"
    version.mkdir(parents=True)
    (repo / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    return version


def onnx_config(
    *, dims: str = "3", dtype: str = "FP32", batch: int = 4, x: str = "x", y_dims: str = "3"
) -> str:
    return f"""
        backend: "onnxruntime"
        max_batch_size: {batch}
        input [{{ name: "{x}" data_type: TYPE_{dtype} dims: [{dims}] }}]
        output [{{ name: "y" data_type: TYPE_FP32 dims: [{y_dims}] }}]
        instance_group [{{ count: 1 kind: KIND_AUTO }}]
        dynamic_batching {{ max_queue_delay_microseconds: 300000 }}
    """


def openvino_config(*, batch: int = 1, kind: str = "CPU", extra: str = "", **tensors: str) -> str:
    config = onnx_config(batch=batch, **tensors).replace("onnxruntime", "openvino")
    config = config.replace("KIND_AUTO", f"KIND_{kind}")
    named = 'default_model_filename: "model.onnx"'
    parameters = {"NUM_STREAMS": "1", "PERFORMANCE_HINT": "latency", "INFERENCE_NUM_THREADS": "1"}
    text = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    )
    return f"{config} {named} {text} {extra}"


def yes(parameter: str) -> str:
    return f'parameters {{ key: "{parameter}" value {{ string_value: "YES" }} }}'


def scale_graph(batch: str | int = "n") -> onnx.ModelProto:
    """y = x * 2 + mean(x), row by row."""
    graph = oh.make_graph(
        [
            oh.make_node("Mul", ["x", "two"], ["doubled"]),
            oh.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
            oh.make_node("Add", ["doubled", "mean"], ["y"]),
        ],
        "scale",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.full(3, 2, np.float32), "two")],
    )
    return make_model(graph)


def open_graph() -> onnx.ModelProto:
    """y = the columns of x that a mask keeps: how many is not in the graph's shapes."""
    graph = oh.make_graph(
        [oh.make_node("Compress", ["x", "mask"], ["y"], axis=1)],
        "open",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "kept"])],
        [oh.make_tensor("mask", TensorProto.BOOL, [3], [True, True, True])],
    )
    return make_model(graph)


def rows_graph() -> onnx.ModelProto:
    """y = how many rows the graph was run on, in each of them."""
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    zero = numpy_helper.from_array(np.array([0], np.int64), "zero")
    graph = oh.make_graph(
        [
            oh.make_node("Shape", ["x"], ["shape"]),
            oh.make_node("Gather", ["shape", "zero"], ["rows"]),
            oh.make_node("Cast", ["rows"], ["value"], to=TensorProto.FLOAT),
            oh.make_node("Concat", ["rows", "one"], ["of_y"], axis=0),
            oh.make_node("Expand", ["value", "of_y"], ["y"]),
        ],
        "rows",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [one, zero],
    )
    return make_model(graph)


def pick_graph() -> onnx.ModelProto:
    """y = table[i]; an index out of range fails the whole run."""
    graph = oh.make_graph(
        [oh.make_node("Gather", ["table", "i"], ["y"])],
        "pick",
        [oh.make_tensor_value_info("i", TensorProto.INT64, ["n", 1])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [oh.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])],
    )
    return make_model(graph)


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)


PYTHON_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        raws = [pb_utils.get_input_tensor_by_name(each, "raw").as_numpy() for each in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("x", raw.astype(np.float32)[None] + ADD)])
            for raw in raws
        ]
"""

PYTHON_CONFIG = """
    backend: "python"
    max_batch_size: 0
    input [{ name: "raw" data_type: TYPE_UINT8 dims: [3] }]
    output [{ name: "x" data_type: TYPE_FP32 dims: [1, 3] }]
    instance_group [{ kind: KIND_CPU }]
"""

ENSEMBLE_CONFIG = """
    platform: "ensemble"
    max_batch_size: 0
    input [{ name: "raw" data_type: TYPE_UINT8 dims: [3] }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [1, 3] }]
    ensemble_scheduling { step [
        { model_name: "to_float" model_version: -1
          input_map { key: "raw" value: "raw" } output_map { key: "x" value: "middle" } },
        { model_name: "scale" model_version: -1
          input_map { key: "x" value: "middle" } output_map { key: "y" value: "y" } }
    ] }
"""


def write_python_model(repo: Path, name: str, add: int = 0) -> None:
    version = write_model(repo, name, PYTHON_CONFIG)
    (version / "model.py").write_text(PYTHON_MODEL.replace("ADD", str(add)))


def write_repository(repo: Path) -> None:
    onnx.save(scale_graph(), write_model(repo, "scale", onnx_config()) / "model.onnx")
    onnx.save(
        scale_graph(),
        write_model(repo, "external", onnx_config()) / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    onnx.save(rows_graph(), write_model(repo, "rows", onnx_config(y_dims="1")) / "model.onnx")
    pick = onnx_config(x="i", dtype="INT64", dims="1", y_dims="1")
    onnx.save(pick_graph(), write_model(repo, "pick", pick) / "model.onnx")
    openvinos = {
        "openvino": openvino_config(),
        "pairs": openvino_config(batch=2),
        "padded": openvino_config(batch=3, extra=yes("ENABLE_BATCH_PADDING")),
    }
    for name, config in openvinos.items():
        onnx.save(scale_graph(), write_model(repo, name, config) / "model.onnx")
    write_python_model(repo, "to_float")
    write_python_model(repo, "versioned", add=100)
    write_model(repo, "both", ENSEMBLE_CONFIG)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Triton puts the path of a Python model into a bash line without quoting it.
    repo = tmp_path_factory.mktemp("serve") / "a repository; with $(spaces)"
    write_repository(repo)
    return repo


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with serve(repository, ServerOptions(poll_s=1)) as server:
        yield server


# --- Helpers ------------------------------------------------------------------------------------


def infer(url: str, model: str, output: str = "y", **arrays: Any) -> np.ndarray[Any, Any]:
    inputs = []
    for name, array in arrays.items():
        tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with InferenceServerClient(url) as client:
        answer = client.infer(model, inputs, client_timeout=20).as_numpy(output)
    assert answer is not None
    return answer


def executions(url: str, model: str) -> tuple[int, int]:
    """(inferences, executions) of a model since its start."""
    with InferenceServerClient(url) as client:
        stats = client.get_inference_statistics(model).model_stats[0]
    return stats.inference_count, stats.execution_count


def scaled(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x * 2 + x.mean(axis=1, keepdims=True)


def sandbox_name(pid: int) -> str:
    """The name that all of a server's files, regions and processes share."""
    found = re.search(r"action-serve-[0-9a-f]{16}", Path(f"/proc/{pid}/cmdline").read_text())
    assert found
    return found[0]


def leftovers(name: str, *pids: int) -> list[str]:
    found = [str(path) for path in Path("/dev/shm").glob(f"{name}*")]
    found += [str(path) for path in Path(tempfile.gettempdir()).glob(f"{name}*")]
    found += [f"process {pid}" for pid in pids if Path(f"/proc/{pid}").exists()]
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in cmdline.read_text(errors="replace"):
                found.append(f"process {cmdline.parent.name}")
        except OSError:
            continue
    return found


def leftovers_after(seconds: float, name: str, *pids: int) -> list[str]:
    deadline = time.monotonic() + seconds
    while (found := leftovers(name, *pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


# --- It serves ----------------------------------------------------------------------------------


def test_an_ensemble_of_both_backends_answers(server: Server) -> None:
    raw = np.array([1, 2, 6], np.uint8)
    answer = infer(server.grpc_url, "both", raw=raw)
    np.testing.assert_array_equal(answer, scaled(raw[None].astype(np.float32)))


def test_the_server_names_its_models_and_addresses(server: Server) -> None:
    assert {(model.name, model.version, model.state) for model in server.models} == {
        (name, "1", "READY")
        for name in (
            *("scale", "external", "rows", "pick", "openvino", "pairs", "padded"),
            *("to_float", "versioned", "both"),
        )
    }
    assert server.grpc_url.startswith("127.0.0.1:")
    assert server.metrics_url
    assert "Started GRPCInferenceService" in server.log_text()
    server.check_running()


def test_the_server_and_its_models_keep_the_memory_that_they_free(server: Server) -> None:
    threads = Path(f"/proc/{server.pid}/task").glob("*/children")
    children = [pid for thread in threads for pid in thread.read_text("ascii").split()]
    assert children
    for pid in (str(server.pid), *children):
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode()
        # glibc splits the string where it stands, once it has read it
        assert all(tunable in variables for tunable in KEEP_MEMORY.split(":"))


def test_tunables_of_the_user_come_last_and_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "glibc.malloc.trim_threshold=4096"
    monkeypatch.setenv("GLIBC_TUNABLES", own)
    found = environment(Installation(program=tmp_path), tmp_path)
    assert found["GLIBC_TUNABLES"] == f"{KEEP_MEMORY}:{own}"


def test_concurrent_requests_share_an_execution_and_every_row_is_right(server: Server) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(rows, 3)).astype(np.float32) for rows in (1, 2, 1, 3, 1, 1, 2, 1)]
    before = executions(server.grpc_url, "scale")
    with ThreadPoolExecutor(len(inputs)) as pool:
        answers = pool.map(lambda x: infer(server.grpc_url, "scale", x=x), inputs)
    for x, answer in zip(inputs, answers, strict=True):
        np.testing.assert_allclose(answer, scaled(x), rtol=1e-6)
    after = executions(server.grpc_url, "scale")
    assert after[0] - before[0] == 12
    assert after[1] - before[1] < len(inputs)


def test_the_requests_of_an_execution_are_one_run_of_the_graph(server: Server) -> None:
    x = np.zeros((2, 3), np.float32)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda x: infer(server.grpc_url, "rows", x=x), (x, x)))
    assert [answer.tolist() for answer in answers] == [[[4.0], [4.0]]] * 2


def test_a_request_that_fails_leaves_the_others_of_its_execution_alone(server: Server) -> None:
    indices = [np.array([[i]], np.int64) for i in (0, 7, 2)]

    def answer(i: np.ndarray[Any, Any]) -> Any:
        try:
            return infer(server.grpc_url, "pick", i=i).item()
        except InferenceServerException as exc:
            return exc.message()

    before = executions(server.grpc_url, "pick")
    with ThreadPoolExecutor(3) as pool:
        first, failed, last = pool.map(answer, indices)
    assert (first, last) == (10.0, 30.0)
    assert "ONNX Runtime" in failed
    assert "idx=7" in failed
    # Two succeeded, and they did not need an execution each: the three were one.
    assert executions(server.grpc_url, "pick")[1] - before[1] == 1


def test_openvino_answers_each_of_many_requests(server: Server) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(1, 3)).astype(np.float32) for _ in range(6)]
    with ThreadPoolExecutor(len(inputs)) as pool:
        answers = list(pool.map(lambda x: infer(server.grpc_url, "openvino", x=x), inputs))
    for x, answer in zip(inputs, answers, strict=True):
        # in float32: bf16, OpenVINO's own choice on many CPUs, is off by 1e-3
        np.testing.assert_allclose(answer, scaled(x), rtol=1e-6)
    assert "openvino runs with OpenVINO in f32" in server.log_text()


def test_openvino_takes_whole_batches_only_unless_it_may_fill_them_up(server: Server) -> None:
    x = np.array([[1, 2, 3], [4, 5, 9]], np.float32)
    np.testing.assert_allclose(infer(server.grpc_url, "pairs", x=x), scaled(x))
    with pytest.raises(InferenceServerException, match="requests with batch size '2', got '1'"):
        infer(server.grpc_url, "pairs", x=x[:1])
    np.testing.assert_allclose(infer(server.grpc_url, "padded", x=x), scaled(x))


def test_external_data_beside_the_file_is_read(server: Server, repository: Path) -> None:
    assert (repository / "external" / "1" / "weights.bin").stat().st_size > 0
    x = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_allclose(infer(server.grpc_url, "external", x=x), scaled(x))


def test_serving_writes_nothing_into_the_repository(server: Server, repository: Path) -> None:
    infer(server.grpc_url, "to_float", "x", raw=np.zeros(3, np.uint8))
    assert not list(repository.rglob("__pycache__"))


def test_poll_mode_serves_a_new_version(server: Server, repository: Path) -> None:
    raw = np.zeros(3, np.uint8)
    assert infer(server.grpc_url, "versioned", "x", raw=raw).max() == 100
    staged = repository.parent / "2"
    staged.mkdir()
    (staged / "model.py").write_text(PYTHON_MODEL.replace("ADD", "200"))
    staged.rename(repository / "versioned" / "2")
    deadline = time.monotonic() + 20
    while (value := infer(server.grpc_url, "versioned", "x", raw=raw).max()) == 100:
        assert time.monotonic() < deadline, "version 2 is not served"
        time.sleep(0.2)
    assert value == 200


# --- It refuses ---------------------------------------------------------------------------------


def test_a_config_that_differs_from_the_graph_fails_the_load(tmp_path: Path) -> None:
    wrong = {
        "dims": onnx_config(dims="4"),
        "rank": onnx_config(dims="3, 1"),
        "dtype": onnx_config(dtype="UINT8"),
        "tensor": onnx_config(x="z"),
        "output": onnx_config(y_dims="-1"),
        "batch": onnx_config(batch=0),
    }
    for name, config in wrong.items():
        onnx.save(scale_graph(), write_model(tmp_path, name, config) / "model.onnx")
    fixed = write_model(tmp_path, "fixed", onnx_config())
    onnx.save(scale_graph(batch=1), fixed / "model.onnx")
    # The C++ backend takes an output's open axis only where config.pbtxt has -1 as well.
    open_output = write_model(tmp_path, "open", onnx_config())
    onnx.save(open_graph(), open_output / "model.onnx")
    (write_model(tmp_path, "truncated", onnx_config()) / "model.onnx").write_bytes(b"\x08\x09\x12")

    with pytest.raises(ServeError) as caught, serve(tmp_path):
        pass
    for reason in (
        "'dims' version 1: Internal: TritonModelException: unable to load model 'dims', tensor "
        "'x': the model expects 2 dimensions (shape [-1, 3]) but the model configuration "
        "specifies 2 dimensions (shape [-1, 4] with the batch dimension",
        "'rank', tensor 'x': the model expects 2 dimensions",
        "'dtype', configuration expects datatype TYPE_UINT8 for input 'x', "
        "model provides TYPE_FP32",
        "'tensor', unexpected inference input 'z', allowed inputs are: x",
        "'output', tensor 'y': the model expects 2 dimensions",
        "'batch', tensor 'x': the model expects 2 dimensions (shape [-1, 3]) but the model "
        "configuration specifies 1 dimensions (shape [3])",
        "'fixed', tensor 'x': for the model to support batching",
        "'open', tensor 'y': the model expects 2 dimensions (shape [-1, -1])",
        "'truncated', ONNX Runtime:",
    ):
        assert reason in caught.value.message
    assert "At:" not in caught.value.message


def test_openvino_refuses_what_the_official_backend_refuses(tmp_path: Path) -> None:
    wrong = {
        "dims": openvino_config(dims="4"),
        "output": openvino_config(y_dims="2"),
        "tensor": openvino_config(x="z"),
        "kind": openvino_config(kind="MODEL"),
        "streams": openvino_config().replace('"1"', '"many"', 1),
        "half": openvino_config(extra=yes("HINT_BF16").replace("YES", "NO")),
        "reshape": openvino_config(extra=yes("RESHAPE_IO_LAYERS")),
    }
    for name, config in wrong.items():
        onnx.save(scale_graph(), write_model(tmp_path, name, config) / "model.onnx")
    write_model(tmp_path, "empty", openvino_config())

    with pytest.raises(ServeError) as caught, serve(tmp_path):
        pass
    for reason in (
        "'dims', tensor 'x': the model expects 2 dimensions (shape [-1, 3]) but the model "
        "configuration specifies 2 dimensions (shape [1, 4] with the batch dimension",
        "'output', tensor 'y': the model expects 2 dimensions (shape [-1, 3])",
        "'tensor', unexpected inference input 'z', allowed inputs are: x",
        "'kind', Triton openVINO backend supports only CPU device",
        "'streams', OpenVINO: expected the parameter 'NUM_STREAMS' to be AUTO or NUMA or "
        "a non-negative number, got many",
        "'half', OpenVINO: expected the parameter 'HINT_BF16' to be YES, got no",
        "'reshape', the parameter 'RESHAPE_IO_LAYERS' is served by the official backend only",
        "'empty', unable to find",
    ):
        assert reason in caught.value.message
    assert "At:" not in caught.value.message


def test_a_broken_config_is_refused_with_tritons_reason(tmp_path: Path) -> None:
    write_python_model(tmp_path, "good")
    write_python_model(tmp_path, "bad")
    (tmp_path / "bad" / "config.pbtxt").write_text('name: "bad"\nmax_batch_sise: 4\n')
    with pytest.raises(ServeError) as caught, serve(tmp_path):
        pass
    assert '2:15: Message type "inference.ModelConfig" has no field' in caught.value.message
    assert f"failed to read text proto from {tmp_path}/bad/config.pbtxt" in caught.value.message
    assert "good" not in caught.value.message


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no model") as caught, serve(tmp_path):
        pass
    assert "action-export" in caught.value.hint
    with pytest.raises(RepositoryError, match="not a directory"), serve(tmp_path / "missing"):
        pass


def test_a_taken_port_is_named(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServeError, match=f"port {port} of 127.0.0.1 .*in use") as caught,
            serve(repository, ServerOptions(http_port=port)),
        ):
            pass
    assert "--http-port" in caught.value.hint


def test_what_is_no_program_is_refused(repository: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ServeError, match="not a program"),
        serve(repository, ServerOptions(tritonserver=tmp_path / "tritonserver")),
    ):
        pass


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--no-such-flag=1", "unrecognized option '--no-such-flag=1'"),
        ("--rate-limit=no", 'Bad option: "--rate-limit".\n  invalid argument for --rate-limit'),
    ],
)
def test_a_wrong_flag_fails_the_start_with_tritons_words(
    flag: str, reason: str, repository: Path
) -> None:
    with pytest.raises(ServeError) as caught, serve(repository, ServerOptions(extra_args=(flag,))):
        pass
    assert caught.value.message == f"tritonserver ended with exit code 1:\n  {reason}"


def test_no_tritonserver_at_all_says_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError) as caught:
        installation.find_installation(None)
    assert caught.value.hint == 'pip install "action-export[serve]"'


def test_the_tritonserver_on_path_comes_before_the_wheels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = installation.find_installation(None)
    assert (found.program, found.python_backends) == (program, ("python",))


def test_a_python_that_no_stub_can_embed_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_spec = installation.importlib.util.find_spec("pytriton")
    assert find_spec
    wheel = Path(str(find_spec.origin)).parent
    with monkeypatch.context() as patch:
        patch.setattr(installation, "_python_version", lambda: "3.99")
        patch.setattr(installation, "_libpython", lambda: None)
        with pytest.raises(DependencyError, match=r"no Python backend for Python 3\.99") as caught:
            installation.wheel_installation(wheel)
        assert "3.11" in caught.value.hint
    # A Python without --enable-shared, on a machine without a libpython of that version.
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(installation.sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(installation.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(DependencyError, match=r"libpython3.*is not installed") as caught:
        installation.wheel_installation(wheel)
    assert "apt-get install libpython3" in caught.value.hint


def test_a_model_of_openvino_without_the_package_says_the_pip_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = installation.importlib.util.find_spec
    monkeypatch.setattr(
        installation.importlib.util,
        "find_spec",
        lambda name: None if name == "openvino" else find(name),
    )
    with (
        pytest.raises(DependencyError, match="openvino needs the backend 'openvino'") as caught,
        serve(repository),
    ):
        pass
    assert caught.value.hint == 'pip install "action-export[openvino]"'


def test_numpy_2_is_refused_for_the_wheels_server() -> None:
    with pytest.raises(DependencyError, match=r"NumPy 2\.0\.1") as caught:
        installation.check_numpy("2.0.1")
    assert caught.value.hint == 'pip install "numpy<2"'
    installation.check_numpy("1.26.4")


# --- It leaves nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(("stop_timeout_s", "code"), [(30, 0), (0, 128 + signal.SIGKILL)])
def test_nothing_stays_after_the_block(stop_timeout_s: float, code: int, tmp_path: Path) -> None:
    write_python_model(tmp_path, "to_float")
    with (tmp_path / "to_float" / "1" / "model.py").open("a") as model:
        model.write(DETACHED_CHILD)
    with serve(tmp_path, ServerOptions(metrics=False, stop_timeout_s=stop_timeout_s)) as server:
        assert server.metrics_url is None
        name = sandbox_name(server.pid)
        # tritonserver, its stub, the stub's child, the stub's region, and the work folder
        assert len(leftovers(name)) == 5
        # Triton's own place for it is /tmp, and it stays there when the server is killed.
        assert list((Path(tempfile.gettempdir()) / name).glob("python_env_*"))
    assert leftovers(name, server.pid) == []
    assert server.process.exit_code() == code


def test_a_server_that_dies_is_noticed_and_leaves_nothing(tmp_path: Path) -> None:
    write_python_model(tmp_path, "to_float")
    with serve(tmp_path) as server:
        name = sandbox_name(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        assert leftovers_after(10, name, server.pid) == []
        with pytest.raises(ServeError, match="exit code 137"):
            server.check_running(settle_s=10)


# In a session of its own, as a daemon would be; sys.executable has the name of the server in it.
DETACHED_CHILD = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
"""

SERVE_AND_SLEEP = """
import json, sys, time
from action_export.serve import serve
with serve(sys.argv[1]) as server:
    print(json.dumps([server.pid, server.process.supervisor.pid]), flush=True)
    while True:  # one long sleep could miss a signal that comes just before it
        time.sleep(0.1)
"""


def test_a_server_that_is_not_ready_in_time_is_stopped(tmp_path: Path) -> None:
    write_python_model(tmp_path, "slow")
    model = tmp_path / "slow" / "1" / "model.py"
    model.write_text("import time; print('I am slow', flush=True); time.sleep(600)")
    with (
        pytest.raises(ServeError, match=r"not ready after 2 s(?s:.*)I am slow"),
        serve(tmp_path, ServerOptions(ready_timeout_s=2)),
    ):
        pass


def test_a_model_that_fails_without_ending_the_server_is_an_error(tmp_path: Path) -> None:
    write_python_model(tmp_path, "bad")
    (tmp_path / "bad" / "1" / "model.py").write_text("import no_such_module")
    with (
        pytest.raises(ServeError, match=r"bad version 1: .*No module named 'no_such_module'"),
        serve(tmp_path, ServerOptions(extra_args=("--exit-on-error=false",))),
    ):
        pass


@pytest.mark.parametrize("victim", ["parent", "supervisor"])
def test_a_sigkill_leaves_nothing(victim: str, tmp_path: Path) -> None:
    write_python_model(tmp_path, "to_float")
    command = [sys.executable, "-c", SERVE_AND_SLEEP, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = json.loads(parent.stdout.readline())
        name = sandbox_name(pids[0])
        try:
            if victim == "parent":
                parent.kill()
            else:
                os.kill(pids[1], signal.SIGKILL)
                # The rest dies with it; the files go when the parent leaves its block.
                parent.send_signal(signal.SIGINT)
            parent.wait()
            assert leftovers_after(15, name, *pids) == []
        finally:
            parent.kill()


# --- Memory and log -----------------------------------------------------------------------------


def test_regions_are_as_large_as_one_request_needs(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "preprocess",
        """backend: "python"
           input [{ name: "frames" data_type: TYPE_UINT8 dims: [-1, -1, -1, 3] }]
           output [{ name: "clips" data_type: TYPE_UINT8 dims: [1, 30, 32, 256, 256, 3] }]
           instance_group [{ count: 2 kind: KIND_CPU }]""",
    )
    write_model(
        tmp_path,
        "recognizer",
        """backend: "onnxruntime" max_batch_size: 8
           input [{ name: "clips" data_type: TYPE_UINT8 dims: [30, 32, 256, 256, 3] }]
           output [{ name: "scores" data_type: TYPE_FP32 dims: [400] }]""",
    )
    write_model(tmp_path, "broken", "nonsense: 1")
    models = memory.python_models(tmp_path, ("python", "onnxruntime"))
    clips = 30 * 32 * 256 * 256 * 3
    assert [(each.name, each.instances, each.request_bytes) for each in models] == [
        ("preprocess", 2, clips),
        ("recognizer", 2, clips + 1600),
    ]
    assert [each.name for each in memory.python_models(tmp_path, ("python",))] == ["preprocess"]
    size = memory.region_size(models)
    assert size % memory.MIB == 0
    assert 1.25 * clips <= size < 1.25 * clips + 2 * memory.MIB
    assert memory.region_size(()) == memory.MIB


def test_too_little_shared_memory_is_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: usage(0, 0, 64 * memory.MIB))
    models = [memory.PythonModel(name="m", instances=2, request_bytes=1)]
    memory.check_room(models, 32 * memory.MIB)
    with pytest.raises(ServeError, match=r"need 66 MiB .* 64 MiB free") as caught:
        memory.check_room(models, 33 * memory.MIB)
    assert caught.value.hint == "in Docker: docker run --shm-size=132m"


def test_load_errors_are_the_causes_and_not_what_follows_from_them() -> None:
    log = (
        'I1123 05:43:28.6 24228 model_lifecycle.cc:472] "loading: pre:1"\n'
        'E1123 05:43:28.7 24228 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        "E1123 05:43:28.8 24228 model_lifecycle.cc:642] \"failed to load 'pre' version 1: "
        'Internal: line one\\n line two\\n"\n'
        'E1123 05:43:28.9 24228 model_repository_manager.cc:703] "Invalid argument: ensemble '
        "'both' depends on 'pre' which has no loaded version. Model 'pre' loading failed\"\n"
        "error: creating server: Internal - failed to load all models\n"
    )
    assert load_errors(log) == ("failed to load 'pre' version 1: Internal: line one\n line two",)
    assert load_errors(log.splitlines()[-1]) == (log.splitlines()[-1],)
    assert load_errors("| a | table |\nlast words\n") == ("last words",)
