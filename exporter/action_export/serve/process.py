"""A tritonserver process that ends with us, whatever ends us."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from action_export.errors import ServeError
from action_export.serve import _supervisor


def shell_safe(path: str) -> bool:
    """Whether Triton can run a Python model from here: it builds a bash line without quoting."""
    return shlex.quote(path) == path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """The names of all that a server leaves on a machine; no other server has the same."""

    workdir: Path
    shm_prefix: str

    @classmethod
    def unique(cls) -> Sandbox:
        name = f"action-serve-{secrets.token_hex(8)}"
        folder = tempfile.gettempdir()
        if not shell_safe(folder):
            folder = "/tmp"
        return cls(workdir=Path(folder) / name, shm_prefix=f"{name}-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The HTTP service of a server. headers: what it wants of those who ask for its models."""

    host: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to run, and the folder to make before.

    links, copies, texts: what the work folder holds, by relative path.
    substitutions: of what by what, in every copy.
    env: added to the environment, or replacing what is there.
    index: where the server lists its models, None where it does not.
    stop_timeout_s: how long the server may take to stop in order.
    """

    sandbox: Sandbox
    command: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    substitutions: tuple[tuple[str, str], ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    index: Index | None = None
    stop_timeout_s: float

    def to_json(self) -> str:
        values = asdict(self) | {
            "workdir": str(self.sandbox.workdir),
            "shm_prefix": self.sandbox.shm_prefix,
            "parent": os.getpid(),
        }
        del values["sandbox"]
        return json.dumps(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A running tritonserver. `pid` is its own, not the supervisor's."""

    pid: int
    supervisor: subprocess.Popen[str]
    log: BinaryIO

    def exit_code(self, within_s: float = 0.0) -> int | None:
        """None while it runs; after that, everything of it is already removed."""
        try:
            return self.supervisor.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def log_text(self, start: int = 0) -> str:
        """What the server and its models have printed, from byte `start` on."""
        return _read(self.log, start)


@contextmanager
def running(launch: Launch) -> Iterator[Process]:
    """Runs the launch for the block's time.

    ServeError: the command cannot be started at all.
    """
    # A file without a name: there is nothing to remove, and it can be read after the server's end.
    with tempfile.TemporaryFile() as log:
        supervisor = subprocess.Popen(
            # Isolated and without site: it needs the standard library only, and starts in 30 ms.
            [sys.executable, "-I", "-S", str(Path(_supervisor.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C is for us; we then stop it in order
        )
        try:
            yield Process(pid=_hand_over(supervisor, launch, log), supervisor=supervisor, log=log)
        finally:
            _stop(supervisor, launch)


def _hand_over(supervisor: subprocess.Popen[str], launch: Launch, log: BinaryIO) -> int:
    """Sends the launch and returns the process id of the server."""
    assert supervisor.stdin
    assert supervisor.stdout
    try:
        with supervisor.stdin as stdin:
            stdin.write(launch.to_json())
    except BrokenPipeError:
        pass  # it has died already; its last words are in the log
    with supervisor.stdout as stdout:
        line = stdout.readline()
    if not line:
        supervisor.wait()
        raise ServeError(
            f"{launch.command[0]} cannot be started: {_last_line(_read(log))}",
            hint="name another program with --tritonserver",
        )
    return int(line)


def _stop(supervisor: subprocess.Popen[str], launch: Launch) -> None:
    supervisor.terminate()
    try:
        supervisor.wait(launch.stop_timeout_s + 10)
    except subprocess.TimeoutExpired:
        # Its death kills tritonserver (PR_SET_PDEATHSIG), and the stubs watch tritonserver.
        supervisor.kill()
        supervisor.wait()
    _supervisor.remove_leftovers(launch.sandbox.workdir, launch.sandbox.shm_prefix)


def _read(log: BinaryIO, start: int = 0) -> str:
    # pread: the file's offset is shared with the processes that write to it.
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), max(0, size - start), start).decode(errors="replace")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it ended without a word"
