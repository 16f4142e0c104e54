"""A service that only calls a model installs numpy, tritonclient[grpc] and PyAV, nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import action_client
import pytest

HEAVY = {"torch", "mmaction", "mmengine", "mmcv", "onnx", "onnxruntime", "action_export", "rich"}


def modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules of a fresh interpreter that ran `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {name.partition(".")[0] for name in json.loads(ended.stdout.splitlines()[-1])}


def test_importing_it_loads_nothing_heavy() -> None:
    loaded = modules_after("import action_client")
    assert "action_client" in loaded
    assert not loaded & HEAVY
    assert not loaded & {"av", "grpc", "cv2"}


def test_using_it_loads_nothing_beyond_the_base_dependencies(clip: Path) -> None:
    code = """
from pathlib import Path
from action_client import VideoClient, ServerUnavailableError, _request
from action_runtime.spec import Contract, FixedResize, SampleFrames
for name in ("torch", "cv2", "mmaction", "mmengine", "decord", "scipy", "rich"):
    sys.modules[name] = None  # importing it fails, as where it is not installed
contract = Contract(sampler=SampleFrames(clip_len=8), resize=FixedResize(width=32, height=32),
                    crop=None, classes=2, average="prob")
_request.prepare(lambda model: _request.sample_file(Path(sys.argv[1]), model), contract, "moves")
try:
    VideoClient("127.0.0.1:1", "moves", retries=0).contract
except ServerUnavailableError:
    pass
for name in ("torch", "cv2", "mmaction", "mmengine", "decord", "scipy", "rich"):
    del sys.modules[name]
"""
    loaded = modules_after(code, str(clip))
    assert {"av", "grpc", "tritonclient"} <= loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", action_client.__all__)
def test_everything_in_all_exists_and_is_documented(name: str) -> None:
    assert getattr(action_client, name).__doc__


def test_type_checkers_may_read_it() -> None:
    assert (Path(action_client.__file__).parent / "py.typed").exists()
