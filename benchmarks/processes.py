"""What /proc tells of a process and of all that it has started: memory, and time on the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
SHM = Path("/dev/shm")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peaks in bytes since each process began. A page that several share counts in each.

    stubs: of Triton's Python backend, all together. shm: of the server's regions, as they are now.
    """

    client: int
    server: int
    stubs: int
    shm: int


def tree(pid: int) -> tuple[int, ...]:
    """The process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        found.append(each)
        waiting += parents.get(each, [])
    return tuple(found)


def cpu_seconds(pid: int) -> float:
    """Of user and system time, of the process and its descendants that are alive."""
    total = 0
    for each in tree(pid):
        fields = _stat(each)
        if fields is not None:
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def memory(pid: int) -> Memory:
    """Of a contender and the server that it started, if it did."""
    client = server = stubs = shm = 0
    for each in tree(pid):
        name = _name(each)
        if each == pid:
            client = _peak(each)
        elif name == "tritonserver":
            server += _peak(each)
            shm += _regions(each)
        elif name.startswith("triton_python"):
            stubs += _peak(each)
    return Memory(client=client, server=server, stubs=stubs, shm=shm)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name (man 5 proc), or None where it has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _peak(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _regions(server: int) -> int:
    """Bytes of /dev/shm in files that begin as the server was told to name them."""
    key = "shm-region-prefix-name="
    try:
        flags = (PROC / str(server) / "cmdline").read_text().split("\0")
    except OSError:
        return 0
    prefixes = [flag.partition(key)[2] for flag in flags if key in flag]
    return sum(
        file.stat().st_blocks * 512
        for prefix in prefixes
        for file in SHM.glob(f"{prefix}*")
        if prefix
    )
