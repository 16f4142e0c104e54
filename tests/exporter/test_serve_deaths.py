"""A model whose process has died is noticed, told and, where that is asked for, served anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from action_export import live
from action_export.errors import ModelDiedError
from action_export.serve import Server, ServerOptions, _supervisor, serve
from action_export.serve.restarts import STEADY_S, Restarts
from support.serving import FREE, MODEL, first_line, plus_one, running, stubs_of, write_model
from tritonclient.utils import InferenceServerException


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def seen(server: Server) -> None:
    """Waits until the supervisor, which looks for new stubs once a second, must know them all."""
    time.sleep(2.5)
    server.check_running()


# --- It is noticed ------------------------------------------------------------------------------


def test_a_killed_model_ends_the_server_though_triton_calls_it_ready(tmp_path: Path) -> None:
    write_model(tmp_path)
    with serve(tmp_path, ServerOptions(metrics=False)) as server:
        assert plus_one(server.grpc_url, 1) == 2
        (stub,) = stubs_of(server.pid)
        os.kill(stub, signal.SIGKILL)
        with pytest.raises(ModelDiedError, match=r"plus_one \(version 1\) was ended by signal 9"):
            server.check_running(settle_s=30)
        with pytest.raises(InferenceServerException):
            plus_one(server.grpc_url, 1)


def test_a_process_that_dies_at_once_was_seen_before(tmp_path: Path) -> None:
    folder = tmp_path / "young" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("read line")
    watch = _supervisor.Watch(os.getpid(), {"index": None})
    assert watch.death() is None
    command = ["triton_python_backend_stub", str(folder / "model.py")]
    with subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE) as stub:
        # Popen returns within the exec, when the kernel has not set the arguments yet.
        while not Path(f"/proc/{stub.pid}/cmdline").read_bytes():
            time.sleep(0.001)
        assert watch.death() is None
        stub.kill()
        os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)
        assert watch.death() == ("the process of young (version 1) was ended by signal 9 (Killed)")


def test_a_request_that_ends_a_model_ends_the_server(tmp_path: Path) -> None:
    write_model(tmp_path)
    with serve(tmp_path, ServerOptions(metrics=False, stop_timeout_s=0)) as server:
        with pytest.raises(InferenceServerException):
            plus_one(server.grpc_url, -3)
        with pytest.raises(ModelDiedError, match=r"plus_one.* ended with exit code 3"):
            server.check_running(settle_s=30)


def test_the_death_of_one_of_two_instances_is_noticed(tmp_path: Path) -> None:
    write_model(tmp_path, count=2)
    with serve(tmp_path, ServerOptions(metrics=False, stop_timeout_s=0)) as server:
        first, _ = stubs_of(server.pid)
        os.kill(first, signal.SIGABRT)
        with pytest.raises(ModelDiedError, match="ended by signal 6"):
            server.check_running(settle_s=30)


def test_a_model_that_is_loaded_anew_replaced_shrunk_or_removed_has_not_died(
    tmp_path: Path,
) -> None:
    repo, other = tmp_path / "repo", tmp_path / "other"
    for name in ("reloaded", "replaced", "shrunk", "removed"):
        write_model(repo, name, count=2 if name == "shrunk" else 1)
    write_model(other, "replaced", version=2)
    write_model(other, "shrunk")
    with serve(repo, ServerOptions(metrics=False, poll_s=1)) as server:
        seen(server)
        before = stubs_of(server.pid)
        assert len(before) == 5
        # each by one rename, so that no poll sees half of it
        (other / "model.py").write_text(MODEL + "\n# changed\n")
        (other / "model.py").rename(repo / "reloaded" / "1" / "model.py")
        (other / "replaced" / "2").rename(repo / "replaced" / "2")
        (other / "shrunk" / "config.pbtxt").rename(repo / "shrunk" / "config.pbtxt")
        (repo / "removed").rename(other / "removed")

        def changed() -> bool:
            now = stubs_of(server.pid)
            new = [model for pid, model in now.items() if pid not in before]
            return sorted(new) == both and sorted(now.values()) == [*both, "shrunk"]

        both = ["reloaded", "replaced"]
        wait_for(changed, "the changes")
        seen(server)
        for name in ("reloaded", "replaced", "shrunk"):
            assert plus_one(server.grpc_url, 1, name) == 2


def test_a_model_that_dies_in_the_proof_is_told_as_that_and_not_waited_for(tmp_path: Path) -> None:
    write_model(tmp_path)
    config = (tmp_path / "plus_one" / "config.pbtxt").read_text()
    other = '}, { name: "frame_index" data_type: TYPE_INT32 dims: [-1] }]'
    (tmp_path / "plus_one" / "config.pbtxt").write_text(config.replace("}]", other, 1))
    spec = {name: SimpleNamespace(name=name, dtype="INT32") for name in ("x", "frame_index")}
    staged: Any = SimpleNamespace(
        folder=tmp_path,
        names=SimpleNamespace(ensemble="plus_one", recognizer="plus_one"),
        contract=SimpleNamespace(classes=1, labels=("one",)),
        frames_of=lambda reference: reference.frames,
        tensors=SimpleNamespace(
            frames=spec["x"], frame_index=spec["frame_index"], scores=SimpleNamespace(name="y")
        ),
        server_flags=(),
    )
    deadly = np.array([-3], np.int32)
    reference: Any = SimpleNamespace(video=Path("a.mp4"), frames=deadly, frame_index=deadly)
    with pytest.raises(ModelDiedError, match="ended with exit code 3"):
        live.verify_live(staged, (reference,), live.Bounds(cpu=1, gpu=1))


# --- action-serve -------------------------------------------------------------------------------


def test_the_command_ends_with_the_code_of_a_dead_model(tmp_path: Path) -> None:
    write_model(tmp_path)
    with running(tmp_path, *FREE, "--json") as process:
        ready = json.loads(first_line(process))
        os.kill(next(iter(stubs_of(ready["pid"]))), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 17
    assert json.loads(out)["error"]["kind"] == "ModelDiedError"
    assert "plus_one (version 1) was ended by signal 9" in err


def test_with_restart_the_same_address_answers_after_each_death_until_it_is_enough(
    tmp_path: Path,
) -> None:
    write_model(tmp_path)
    options = ("--on-death", "restart", "--max-restarts", "2", "--json", "-q")
    with running(tmp_path, *FREE, *options) as process:
        ready = json.loads(first_line(process))
        pid = ready["pid"]
        for restart, victim in enumerate((next(iter(stubs_of(pid))), None), 1):
            os.kill(pid if victim is None else victim, signal.SIGKILL)
            pid = pid_after(process, f"restart {restart} of at most 2")
            assert plus_one(ready["grpc_url"], 1) == 2
        os.kill(next(iter(stubs_of(pid))), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 17
    assert json.loads(out)["error"]["kind"] == "ModelDiedError"
    assert "restart" not in err.replace("--on-death restart", "")


def pid_after(process: subprocess.Popen[str], words: str) -> int:
    """Of the new server, once it is ready; the command has told the death and the restart."""
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "ready after" in line:
            assert words in "".join(lines)
            return int(line.rpartition(" ")[2])
    raise AssertionError("".join(lines))


def test_what_cannot_be_served_at_first_is_not_tried_again(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "plus_one" / "1" / "model.py").write_text("import no_such_module")
    with running(tmp_path, *FREE, "--on-death", "restart") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 14
    assert err.count("starting tritonserver") == 1


def test_restarts_pause_longer_each_time_and_end_unless_the_server_was_steady() -> None:
    restarts = Restarts(3)
    assert [restarts.pause_s(1) for _ in range(4)] == [0.5, 1, 2, None]
    assert restarts.pause_s(STEADY_S) == 0.5
    assert [restarts.pause_s(STEADY_S - 1) for _ in range(3)] == [1, 2, None]
    assert Restarts(0).pause_s(STEADY_S) is None
    many = Restarts(10)
    assert [many.pause_s(0) for _ in range(10)][-1] == 30
