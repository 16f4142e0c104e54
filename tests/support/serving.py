"""A model that adds one, `action-serve` as a process, and the processes below a tritonserver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

COMMAND = Path(sys.executable).parent / "action-serve"
FREE = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


MODEL = """
# A negative x ends the process, with the exit code -x.
import os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        xs = [pb_utils.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        if xs[0][0] < 0:
            os._exit(-int(xs[0][0]))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]) for x in xs]
"""

CONFIG = """
    name: "NAME"
    backend: "python"
    max_batch_size: 0
    input [{ name: "x" data_type: TYPE_INT32 dims: [-1] }]
    output [{ name: "y" data_type: TYPE_INT32 dims: [-1] }]
    instance_group [{ count: COUNT kind: KIND_CPU }]
    version_policy { latest { num_versions: 1 } }
"""


def write_model(repo: Path, name: str = "plus_one", *, version: int = 1, count: int = 1) -> None:
    folder = repo / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    config = CONFIG.replace("NAME", name).replace("COUNT", str(count))
    (repo / name / "config.pbtxt").write_text(config)


def plus_one(url: str, x: int, model: str = "plus_one") -> int:
    tensor = InferInput("x", (1,), "INT32")
    tensor.set_data_from_numpy(np.array([x], np.int32))
    with InferenceServerClient(url) as client:
        answer = client.infer(model, [tensor], client_timeout=20).as_numpy("y")
    assert answer is not None
    return int(answer[0])


@contextmanager
def running(*args: str | Path, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """action-serve without an activated environment, as a service manager would start it."""
    env = {**os.environ, "PATH": "/usr/bin:/bin"}
    env.pop("VIRTUAL_ENV", None)
    with subprocess.Popen(
        [COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        assert process.stderr
        pytest.fail(process.stderr.read())
    return line


def stubs_of(server: int) -> dict[int, str]:
    """The processes of Python models that run below a tritonserver, by id, each with its model."""
    found = {}
    for children in Path(f"/proc/{server}/task").glob("*/children"):
        with suppress(OSError):
            for pid in map(int, children.read_text("ascii").split()):
                command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                # empty for a process that has ended and waits for its parent to ask
                if command[0].endswith("triton_python_backend_stub"):
                    found[pid] = Path(command[1]).parts[-3]
    return dict(sorted(found.items()))
