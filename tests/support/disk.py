"""Disks that fail for real: without permission, with no space left, with a limit on file sizes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions hold for root too: the block runs as nobody where it would run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that everybody may use; pytest's own are closed to all but its user."""
    folder = Path(tempfile.mkdtemp(prefix="action-export-test-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing a file beyond `size` bytes fails (EFBIG), as it does on a full disk (ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path | None]:
    """A file system of that size at `folder`, or None where mounting is not permitted."""
    with _mounted(folder, f"size={kibibytes}k") as disk:
        yield disk


@contextmanager
def read_only_folder(folder: Path) -> Iterator[Path | None]:
    """An empty folder that nobody can write to, or None where even root cannot have one."""
    if os.geteuid() == 0:
        with _mounted(folder, "ro") as disk:
            yield disk
        return
    folder.mkdir(mode=0o555)
    try:
        yield folder
    finally:
        folder.chmod(0o755)


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path | None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
