"""`action-serve`: what it prints, how it stops, and with which code it ends."""

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
from pathlib import Path

import numpy as np
import pytest
from support.serving import FREE, first_line, running
from tritonclient.grpc import InferenceServerClient, InferInput

MODEL = """
import sys
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        print("python", sys.executable, flush=True)

    def execute(self, requests):
        xs = [pb_utils.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]) for x in xs]
"""

CONFIG = """
    name: "plus_one"
    backend: "python"
    max_batch_size: 0
    input [{ name: "x" data_type: TYPE_INT32 dims: [2] }]
    output [{ name: "y" data_type: TYPE_INT32 dims: [2] }]
    instance_group [{ kind: KIND_CPU }]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    (repo / "plus_one" / "1").mkdir(parents=True)
    (repo / "plus_one" / "config.pbtxt").write_text(CONFIG)
    (repo / "plus_one" / "1" / "model.py").write_text(MODEL)
    return repo


def run(*args: str | Path) -> tuple[int, str, str]:
    with running(*args) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def sandbox_name(pid: int) -> str:
    """The name that all of a server's files, regions and processes share."""
    found = re.search(r"action-serve-[0-9a-f]{16}", Path(f"/proc/{pid}/cmdline").read_text())
    assert found
    return found[0]


def leftovers(name: str) -> list[str]:
    found = [str(path) for path in Path("/dev/shm").glob(f"{name}*")]
    found += [str(path) for path in Path(tempfile.gettempdir()).glob(f"{name}*")]
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in cmdline.read_text(errors="replace"):
                found.append(f"process {cmdline.parent.name}")
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_serves_and_a_signal_stops_all_of_it(
    number: signal.Signals, repository: Path, tmp_path: Path
) -> None:
    # A Python puts the current directory first on its path: this one must not be imported from.
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the current directory')")
    with running(repository, *FREE, "--json", cwd=tmp_path) as process:
        ready = json.loads(first_line(process))
        assert ready["models"] == [{"name": "plus_one", "version": "1"}]
        assert ready["metrics_url"].startswith("http://127.0.0.1:")
        with InferenceServerClient(ready["grpc_url"]) as client:
            x = InferInput("x", (2,), "INT32")
            x.set_data_from_numpy(np.array([1, 2], np.int32))
            answer = client.infer("plus_one", [x], client_timeout=20).as_numpy("y")
        assert answer is not None
        assert answer.tolist() == [2, 3]
        name = sandbox_name(ready["pid"])
        assert leftovers(name)

        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    assert "stopping" in err
    assert "Traceback" not in err
    assert leftovers(name) == []


def test_text_has_one_address_a_line_and_quiet_means_quiet(repository: Path) -> None:
    with running(repository, *FREE, "--no-metrics", "-q") as process:
        lines = [first_line(process) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert re.fullmatch(r"gRPC     127\.0\.0\.1:\d+\n", lines[0])
    assert re.fullmatch(r"HTTP     http://127\.0\.0\.1:\d+\n", lines[1])
    assert lines[2] == "models   plus_one (version 1)\n"
    assert err == ""


def test_flags_after_two_dashes_reach_tritonserver_and_v_shows_its_log(repository: Path) -> None:
    with running(repository, *FREE, "-v", "--json", "--", "--id=some-name") as process:
        ready = json.loads(first_line(process))
        with InferenceServerClient(ready["grpc_url"]) as client:
            assert client.get_server_metadata().name == "some-name"
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert "successfully loaded 'plus_one'" in err


def test_a_signal_while_it_starts_stops_it(repository: Path) -> None:
    with running(repository, *FREE) as process:
        assert process.stderr
        assert "starting tritonserver" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_server_that_dies_ends_the_command_with_its_code(repository: Path) -> None:
    with running(repository, *FREE, "--json") as process:
        os.kill(json.loads(first_line(process))["pid"], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 14
    assert json.loads(out)["error"]["kind"] == "ServeError"
    assert "tritonserver ended with exit code 137" in err


def test_a_taken_port_is_an_error_that_names_it(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = run(repository, *FREE, "--grpc-port", port, "--json")
    error = json.loads(out)["error"]
    assert (code, error["kind"], error["exit_code"]) == (14, "ServeError", 14)
    assert f"port {port} of 127.0.0.1" in error["message"]
    assert "--grpc-port" in error["hint"]
    assert error["message"] in err


def test_a_missing_repository_is_an_error_with_the_next_command(tmp_path: Path) -> None:
    code, out, err = run(tmp_path / "none")
    assert (code, out) == (11, "")
    assert "is not a directory\n  action-export CONFIG CHECKPOINT --triton-repo" in err


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    version = tmp_path / "plus_one" / "1"
    version.mkdir(parents=True)
    (tmp_path / "plus_one" / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text("import no_such_module")
    code, out, err = run(tmp_path, *FREE)
    assert (code, out) == (14, "")
    assert "failed to load 'plus_one' version 1" in err
    assert "No module named 'no_such_module'" in err


@pytest.mark.parametrize("args", [("--poll", "0"), ("--grpc-port", "x"), ()])
def test_a_wrong_option_is_argparses_error(args: tuple[str, ...], repository: Path) -> None:
    code, _, err = run(*((repository, *args) if args else ()))
    assert code == 2
    assert "usage: action-serve REPO" in err


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "torch", "onnx", "onnxruntime", "tritonclient", "grpc", "google.protobuf")
    script = (
        "import sys; from action_export.cli.serve import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "-- --rate-limit" in done.stdout
