"""The process between us and tritonserver: when either of the two dies, nothing stays behind.

Run as a script, with the standard library only. It reads one JSON object (a `Launch`) from stdin,
makes the work folder, starts tritonserver, writes its process id on one line to stdout, and waits
until tritonserver exits, a signal arrives, its parent is gone, or the process of a model has died.
Then it stops tritonserver and removes every process, shared memory region and file of it. stderr is
tritonserver's log.

The Python backend runs each instance of a model in a process of its own, the stub. One that has
died is not started again, its model answers nothing any more, and Triton calls server and model
ready as before (tried, 24.10). So it is looked for here.

PR_SET_PDEATHSIG on tritonserver alone would not do: it fires when the *thread* that forked ends,
reaches no stub of the Python backend, and removes no file.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
POLL_S = 0.25  # how late the death of the parent or of a stub may be noticed
SCAN_S = 1.0  # how late a new stub may be seen; to look for all takes 4 ms
UNSETTLED_S = 30.0
"""So long after the start and after each new stub, all are looked for at every poll: a request may
end a stub within SCAN_S of its start, and one that was never seen is not missed."""

MODEL_DIED = 70  # exit code: tritonserver ran, and was stopped because a model could not answer
MODEL_DIED_WORDS = "action-serve: "  # how the line of the log begins that says which, and how
DEAD_MODEL_GRACE_S = 2.0
"""What the models that live get to finish their requests; tritonserver itself would wait 30 s for
the stub that has died."""
INDEX_TIMEOUT_S = 2.0

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """tritonserver's exit code; 128 + n when signal n ended it; MODEL_DIED."""
    # Blocked, not handled: they are read one by one with sigtimedwait, so none can be missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a shell's `&` starts jobs that ignore SIGINT
    launch = json.load(sys.stdin)
    # Orphans of tritonserver become our children, so that kill_children finds all of them.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        build(Path(launch["workdir"]), launch)
        code = supervise(start(launch), launch)
    finally:
        kill_children()
        remove_leftovers(Path(launch["workdir"]), launch["shm_prefix"])
    return code if code >= 0 else 128 - code


def build(workdir: Path, launch: dict[str, Any]) -> None:
    """Makes the work folder of the launch: its links, copies and texts by relative path."""
    workdir.mkdir(mode=0o700)
    for name in (*launch["links"], *launch["copies"], *launch["texts"]):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
    for name, target in launch["links"].items():
        (workdir / name).symlink_to(target)
    for name, source in launch["copies"].items():
        content = Path(source).read_bytes()
        for old, new in launch["substitutions"]:
            content = content.replace(old.encode(), new.encode())
        (workdir / name).write_bytes(content)
    for name, text in launch["texts"].items():
        (workdir / name).write_text(text, encoding="utf-8")


def start(launch: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Starts tritonserver and tells its process id to the parent."""

    def in_child() -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # this process has one thread, so it is exact
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    server = subprocess.Popen(
        launch["command"],
        env={**os.environ, **launch["env"]},
        # The Python of a stub imports from the current directory first: not from the user's.
        cwd=launch["workdir"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=in_child,
    )
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    return server


def supervise(server: subprocess.Popen[bytes], launch: dict[str, Any]) -> int:
    """Waits until tritonserver exits, or stops it: when asked to, when the parent is gone, and when
    a model has died."""
    watch = Watch(server.pid, launch)
    while server.poll() is None:
        received = signal.sigtimedwait(SIGNALS, POLL_S)
        asked = received is not None and received.si_signo != signal.SIGCHLD
        if asked or os.getppid() != launch["parent"]:
            stop(server, launch["stop_timeout_s"])
        elif death := watch.death():
            sys.stderr.write(f"{MODEL_DIED_WORDS}{death}\n")
            sys.stderr.flush()
            stop(server, min(launch["stop_timeout_s"], DEAD_MODEL_GRACE_S))
            return MODEL_DIED
    return server.returncode


class Stub(NamedTuple):
    """A process of the Python backend.

    started: with `pid`, what no other process has. place: model, version and instance, which a stub
    has in common with the one that takes its place when a model is loaded again.
    """

    pid: int
    started: str
    place: tuple[str, str, str]


class Watch:
    """Tells a stub that died from one that ended in order, with its model or with an instance."""

    def __init__(self, server: int, launch: dict[str, Any]) -> None:
        self._server = server
        self._index = launch["index"]
        self._alive: set[Stub] = set()
        self._ended: dict[Stub, int] = {}
        self._next_scan = 0.0
        self._settled = time.monotonic() + UNSETTLED_S

    def death(self) -> str | None:
        """Which model can answer no more, and how its process ended; None while all can."""
        ended = [stub for stub in self._alive if _stat(stub.pid)[:2] != (stub.started, True)]
        # Now: it is a zombie, with its exit code, until tritonserver looks at it for a request.
        self._ended.update({stub: _exit_code(stub.pid) for stub in ended})
        now = time.monotonic()
        if not self._ended and now < self._next_scan:
            return None
        found = set(_stubs(self._server))
        if not found <= self._alive:
            self._settled = now + UNSETTLED_S
        self._next_scan = now + SCAN_S if now > self._settled else now
        self._alive = found
        for stub, code in list(self._ended.items()):
            dead = self._is_dead(stub, code)
            if dead is not None:
                del self._ended[stub]
            if dead:
                model, version, _ = stub.place
                return f"the process of {model} (version {version}) {_how(code)}"
        return None

    def _is_dead(self, stub: Stub, code: int) -> bool | None:
        """None while the server does not say what it serves, as when it starts."""
        if any(other.place == stub.place for other in self._alive):
            return False
        # Of several instances, Triton may end one in order, when a config is changed.
        others = any(other.place[:2] == stub.place[:2] for other in self._alive)
        if code == 0 and others:
            return False
        return _is_served(self._index, stub.place[:2], unknown=code != 0)


def _stubs(server: int) -> Iterator[Stub]:
    """The stubs that run below tritonserver."""
    for pid in _children_of_threads(server):
        with suppress(
            OSError, ValueError, LookupError
        ):  # it has ended meanwhile, or is none of ours
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            # program, REPO/MODEL/VERSION/FILE, region, two sizes, parent, folder, offset, instance
            arguments = line.split("\0")
            started, runs, _ = _stat(pid)
            if runs and Path(arguments[0]).name == "triton_python_backend_stub":
                model, version = Path(arguments[1]).parts[-3:-1]
                yield Stub(pid, started, (model, version, "".join(arguments[8:9])))


def _children_of_threads(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            yield from map(int, children.read_text().split())


def _stat(pid: int) -> tuple[str, bool, int]:
    """(when it started, whether it runs, its wait status), of proc(5)'s fields 22, 3 and 52."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", False, 0
    fields = text.rpartition(")")[2].split()
    return fields[19], fields[0] not in "ZX", int(fields[49])


def _exit_code(pid: int) -> int:
    """Of a process that has ended, negative for a signal; 0 also where nobody can tell any more."""
    return os.waitstatus_to_exitcode(_stat(pid)[2])


def _how(code: int) -> str:
    if code < 0:
        return f"was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit code {code}" if code else "has ended"


def _is_served(
    index: dict[str, Any] | None, model: tuple[str, str], *, unknown: bool
) -> bool | None:
    """Whether tritonserver calls this version ready, which it does whatever became of the stub.

    None where it cannot be reached yet; `unknown` where it refuses to tell, or has no HTTP.
    """
    import http.client  # not before: it takes longer to import than all else here

    if index is None:
        return unknown
    connection = http.client.HTTPConnection(index["host"], index["port"], timeout=INDEX_TIMEOUT_S)
    try:
        connection.request("POST", "/v2/repository/index", headers=index["headers"])
        response = connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            return unknown
        states = {(m["name"], m.get("version")): m.get("state") for m in json.loads(content)}
    except (OSError, http.client.HTTPException):
        return None
    except (ValueError, LookupError, TypeError):
        return unknown  # not Triton's list: whatever stands before it must not end the server
    finally:
        connection.close()
    state = states.get(model)
    return None if state in ("LOADING", "UNLOADING") else state == "READY"


def stop(server: subprocess.Popen[bytes], timeout_s: float) -> None:
    """SIGINT, which lets requests in flight finish; after `timeout_s`, SIGKILL.

    tritonserver waits as long by itself for a stub of the Python backend that does not answer.
    """
    deadline = time.monotonic() + timeout_s
    server.send_signal(signal.SIGINT)
    while server.poll() is None and time.monotonic() < deadline:
        signal.sigtimedwait((signal.SIGCHLD,), POLL_S)
    server.kill()
    server.wait()


def kill_children() -> None:
    """Kills and reaps every descendant: as subreaper, we adopt those whose parent has died."""
    while True:
        for pid in _children():
            # Ours and not reaped yet, so the id cannot have been given to another process.
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # proc(5): "pid (comm) state ppid ...", and comm may hold spaces and parentheses.
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue  # it ended meanwhile
        if int(parent) == os.getpid():
            yield int(stat.parent.name)


def remove_leftovers(workdir: Path, shm_prefix: str) -> None:
    """Removes the work folder and the shared memory regions of a server that has ended."""
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(workdir, ignore_errors=True)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
