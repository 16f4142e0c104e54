"""`action-serve --on-death restart`, what it says, and the processes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sys.executable).parent / "action-serve"
MIB = 2**20
NOTICED_S = 90.0
"""From a kill until the command has said so and serves again. Nothing is slow about it but loading
the models, and the pauses, which grow to 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """rss_mib: what lies in memory. files: open descriptors."""

    rss_mib: int
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """noticed: the command told it, and served again. seconds: from the kill until then."""

    victim: str
    noticed: bool
    seconds: float


class ActionServe:
    """A running command. pid: of the present tritonserver."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self.process = process
        ready = json.loads(process.stdout.readline())
        if ready["error"]:
            raise RuntimeError(ready["error"]["message"])
        self.grpc_url: str = ready["grpc_url"]
        self.pid: int = ready["pid"]
        self.lines: list[str] = []
        self._said = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._said:
                self.lines.append(line)
                if "ready after" in line:
                    self.pid = int(line.rpartition(" ")[2])
                self._said.notify_all()

    @property
    def restarts(self) -> int:
        with self._said:
            return sum("restart " in line and " in " in line for line in self.lines)

    def processes(self) -> dict[str, int]:
        """By name: the command, its supervisor, tritonserver, and the process of each model."""
        found = {"action-serve": self.process.pid, "tritonserver": self.pid}
        with suppress(OSError):
            found["supervisor"] = _parent(self.pid)
        return {**found, **stubs(self.pid)}

    def kill(self, victim: str) -> Death:
        """SIGKILL for a process by its name, and what came of it."""
        started, before = time.monotonic(), self.pid
        os.kill(self.processes()[victim], signal.SIGKILL)
        with self._said:
            noticed = self._said.wait_for(lambda: self.pid != before, NOTICED_S)
        return Death(victim=victim, noticed=noticed, seconds=round(time.monotonic() - started, 1))


@contextmanager
def action_serve(repository: Path) -> Iterator[ActionServe]:
    """Serves the repository for the block's time, and starts again whatever dies of it."""
    command = [str(COMMAND), str(repository), "--json", "-q", "--no-metrics"]
    command += ["--grpc-port", "0", "--http-port", "0"]
    command += ["--on-death", "restart", "--max-restarts", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield ActionServe(process)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def stubs(server: int) -> dict[str, int]:
    """The processes of the Python models below a tritonserver, by model."""
    found = {}
    for children in Path(f"/proc/{server}/task").glob("*/children"):
        with suppress(OSError):
            for pid in map(int, children.read_text("ascii").split()):
                arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
                if arguments[0].endswith("triton_python_backend_stub"):
                    found[Path(arguments[1]).parts[-3]] = pid
    return found


def footprint(pid: int) -> Footprint:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return Footprint(
        rss_mib=pages * os.sysconf("SC_PAGE_SIZE") // MIB,
        files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
    )


def footprints(server: ActionServe) -> dict[str, Footprint]:
    """Of each process of the server, and of the callers, which are this one."""
    processes = {**server.processes(), "callers": os.getpid()}
    return {name: footprint(pid) for name, pid in sorted(processes.items())}


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
