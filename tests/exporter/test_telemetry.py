"""onnxruntime and openvino tell nobody that they are used, nor note it down, wherever they run."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from action_export.dependencies import NO_TELEMETRY
from action_export.serve.installation import Installation, environment

ROOT = Path(__file__).parents[2]

MODEL = """
import numpy as np, onnx
from onnx import TensorProto, helper
tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
"""

IN_THE_EXPORTER = """
from action_export.dependencies import import_onnxruntime
session = import_onnxruntime().InferenceSession(model.SerializeToString())
print(session.run(None, {"x": np.ones((1, 1), np.float32)})[0].item())
"""

IN_THE_SERVER = """
import os, sys
from pathlib import Path
from action_export.serve import ServerOptions, serve
from tritonclient.grpc import InferenceServerClient, InferInput
folder = Path("repo/neg/1")
folder.mkdir(parents=True)
onnx.save(model, folder / "model.onnx")
(folder.parent / "config.pbtxt").write_text('''
    name: "neg" backend: "onnxruntime" max_batch_size: 1
    input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
    instance_group [{ count: 1 kind: KIND_CPU }]
''')
with serve("repo", ServerOptions(metrics=False, stop_timeout_s=0)) as server:
    x = InferInput("x", (1, 1), "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32))
    with InferenceServerClient(server.grpc_url) as client:
        print(client.infer("neg", [x], client_timeout=60).as_numpy("y").item())
"""

IN_OPENVINO = """
from pathlib import Path
from action_export.serve.backends import openvino_network
onnx.save(model, "model.onnx")
network = openvino_network.compiled(
    openvino_network.read(Path("model.onnx")),
    {"max_batch_size": 1, "input": [{"name": "x", "data_type": "TYPE_FP32"}],
     "output": [{"name": "y", "data_type": "TYPE_FP32"}]},
)
print(network([np.ones((1, 1), np.float32)])[0].item())
"""


def run_at_a_new_users(script: str, tmp_path: Path, *around: str) -> tuple[list[str], str]:
    """What the script leaves in the home of a user who has never run anything, and what it prints.

    around: a command that runs it.
    """
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    # neither what the tests set, nor what points caches elsewhere, nor what openvino takes for CI
    unset = (NO_TELEMETRY[0], "XDG_CACHE_HOME", "CI", "TF_BUILD", "JENKINS_URL")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [*around, sys.executable, "-c", MODEL + script],
        env={**env, "HOME": str(home)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("-1.0\n"), done.stderr
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    return left, done.stdout.removeprefix("-1.0\n")


@pytest.mark.parametrize(
    "script",
    [IN_THE_EXPORTER, IN_THE_SERVER, IN_OPENVINO],
    ids=["exporter", "server", "openvino"],
)
def test_nothing_is_written_at_the_users(script: str, tmp_path: Path) -> None:
    assert run_at_a_new_users(script, tmp_path) == ([], "")


# A network of its own, which leads nowhere; what the kernel has counted there comes last.
ALONE = ("unshare", "--map-root-user", "--net")
COUNTED = ("sh", "-c", '"$@"; grep ^Ip: /proc/net/snmp', "sh")


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*ALONE, "true"], check=False).returncode != 0,
    reason="no network of its own can be made here",
)
@pytest.mark.parametrize("script", [IN_THE_EXPORTER, IN_OPENVINO], ids=["exporter", "openvino"])
def test_nobody_is_looked_for_in_the_network(script: str, tmp_path: Path) -> None:
    _, counted = run_at_a_new_users(script, tmp_path, *ALONE, *COUNTED)
    names, values = (line.split() for line in counted.splitlines())
    assert dict(zip(names, values, strict=True))["OutNoRoutes"] == "0"


def test_who_has_set_the_variable_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, off = NO_TELEMETRY
    installation = Installation(program=tmp_path)
    monkeypatch.delenv(name)
    assert environment(installation, tmp_path)[name] == off
    monkeypatch.setenv(name, "0")
    assert environment(installation, tmp_path)[name] == "0"


PACKAGES = ("onnxruntime", "openvino")


def imports(node: ast.AST) -> list[int]:
    """The lines that import one of the two packages or a part of it."""
    return [
        each.lineno
        for each in ast.walk(node)
        if (isinstance(each, ast.ImportFrom) and (each.module or "").split(".")[0] in PACKAGES)
        or (
            isinstance(each, ast.Import)
            and any(alias.name.split(".")[0] in PACKAGES for alias in each.names)
        )
    ]


def guards(node: ast.AST) -> list[int]:
    """The lines that call the functions that import them."""
    names = {f"import_{package}" for package in PACKAGES}
    return [
        each.lineno
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and getattr(each.func, "id", "") in names
    ]


def test_no_module_imports_them_but_with_their_telemetry_off() -> None:
    guarded, found = 0, []
    for folder in ("exporter", "benchmarks", "soak", "scripts", "model_repository_templates"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            after = {
                line
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef) and guards(function)
                for line in imports(function)
                if min(guards(function)) < line
            }
            guarded += len(after)
            if path.name != "dependencies.py":
                bare = [line for line in imports(tree) if line not in after]
                found += [f"{path.relative_to(ROOT)}:{line}" for line in bare]
    assert found == []
    assert guarded >= 4
