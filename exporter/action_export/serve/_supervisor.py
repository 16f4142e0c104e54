"""The process between us and tritonserver: when either of the two dies, nothing stays behind.

Run as a script, with the standard library only. It reads one JSON object (a `Launch`) from stdin,
makes the work folder, starts tritonserver, writes its process id on one line to stdout, and waits
until tritonserver exits, a signal arrives, or its parent is gone. Then it stops tritonserver and
removes every process, shared memory region and file of it. stderr is tritonserver's log.

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
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
POLL_S = 0.25  # how late the death of the parent may be noticed

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """tritonserver's exit code; 128 + n when signal n ended it."""
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
    """Waits until tritonserver exits, or stops it when asked to or when the parent is gone."""
    while server.poll() is None:
        received = signal.sigtimedwait(SIGNALS, POLL_S)
        asked = received is not None and received.si_signo != signal.SIGCHLD
        if asked or os.getppid() != launch["parent"]:
            stop(server, launch["stop_timeout_s"])
    return server.returncode


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
