"""The folder beside a repository in which an export is made, and what others have left of theirs.

A folder belongs to the process that holds a lock on the file `OWNER` in it. The kernel takes that
lock from a process that ends, in whatever way, and no id of a process that is used again can be
mistaken for it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from action_export.errors import RepositoryError

OWNER = "owner.json"

# Made in one moment and locked in the next, by us; never locked by releases that knew no owner.
_UNOWNED_S = 24 * 3600.0

_DISK_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.ENAMETOOLONG),
}


@contextmanager
def beside(repo: Path) -> Iterator[Path]:
    """A folder beside the repository, on the same file system, that is gone afterwards.

    Beside, because Triton takes every folder inside a repository for a model, and 1.tmp in a
    model for version 1.

    Raises:
        RepositoryError: the folder cannot be made, or the disk failed the block.
    """
    parent = _parent(repo)
    with disk_errors(f"{parent} cannot be written"), ExitStack() as undo:
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            undo.callback(remove_if_empty, folder)
        prefix = f".{_name(repo)}.staging-{os.getpid()}-"
        stage = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        undo.enter_context(_owned(stage))
        _check_same_device(repo, stage)
        yield stage


def leave_behind(stage: Path) -> Path:
    """Keeps the folder of `beside` when its block ends; to the next export it is abandoned."""
    left = Path(tempfile.mkdtemp(prefix=stage.name[: -len("12345678")], dir=stage.parent))
    os.replace(stage, left)
    return left


@contextmanager
def disk_errors(fact: str) -> Iterator[None]:
    """Turns what a disk or its permissions refuse into a RepositoryError; the rest is a bug."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _DISK_ERRORS:
            raise
        raise RepositoryError(
            f"{fact}: {exc.strerror}" + (f" ({exc.filename})" if exc.filename else ""),
            hint="free space or change permissions there, or give another --triton-repo",
        ) from exc


def abandoned(repo: Path) -> Iterator[Path]:
    """The folders of exports to `repo` that have ended without removing them, one after the other.

    While one is looked at, no other process gets it. What may belong to another machine that shares
    this disk is none of them.
    """
    parent = _parent(repo)
    if not parent.is_dir():
        return
    # tempfile's eight characters, after the process id; releases that knew no owner wrote no id
    pattern = re.compile(rf"\.{re.escape(_name(repo))}\.staging-(\d+-)?[a-z0-9_]{{8}}")
    for name in sorted(os.listdir(parent)):
        if pattern.fullmatch(name):
            with _taken(parent / name) as taken:
                if taken:
                    yield parent / name


@contextmanager
def alone(repo: Path) -> Iterator[None]:
    """Lets one process at a time change the repository; the others wait for it.

    The lock is a file beside the repository, which goes when the lock does. Not the folder itself:
    whoever calls us may have locked that.
    """
    path = _parent(repo) / f".{_name(repo)}.publishing"
    with ExitStack() as stack:
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            closing = ExitStack()
            closing.callback(os.close, file)
            with closing:
                # a file system without locks has no such order; renames still exclude each other
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                if _is_at(file, path):  # else the one before us has removed it
                    stack.push(closing.pop_all())
                    break
        stack.callback(path.unlink, missing_ok=True)
        yield


def remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _name(repo: Path) -> str:
    return Path(os.path.realpath(repo)).name


def _parent(repo: Path) -> Path:
    """Of a repository that is a symbolic link, beside the folder that it leads to."""
    return Path(os.path.realpath(repo)).parent


@contextmanager
def _owned(stage: Path) -> Iterator[None]:
    """Owns the folder for the block's time, and then removes it."""
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, stage, ignore_errors=True)
        file = os.open(stage / OWNER, os.O_RDWR | os.O_CREAT, 0o666)
        undo.callback(os.close, file)
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(file, json.dumps({**_machine(), "pid": os.getpid()}).encode())
        # while it is still locked, so that nobody takes it for abandoned
        undo.callback(shutil.rmtree, stage, ignore_errors=True)
        yield


@contextmanager
def _taken(stage: Path) -> Iterator[bool]:
    """Whether nobody owns the folder; if so, we do for the block's time."""
    try:
        file = os.open(stage / OWNER, os.O_RDWR)
    except FileNotFoundError:
        yield _age_s(stage) > _UNOWNED_S
        return
    except OSError:
        yield False
        return
    try:
        yield _locks(file) and _on_this_machine(stage / OWNER)
    finally:
        os.close(file)


def _locks(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _on_this_machine(owner: Path) -> bool:
    """Locks of another machine need not reach us. A container has its host's boot, not its name."""
    try:
        found = json.loads(owner.read_text("utf-8"))
        return any(found[key] == value for key, value in _machine().items())
    except (OSError, ValueError, KeyError, TypeError):
        return _age_s(owner) > _UNOWNED_S


def _machine() -> dict[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return {"boot": boot, "host": socket.gethostname()}


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _check_same_device(repo: Path, stage: Path) -> None:
    if repo.exists() and repo.stat().st_dev != stage.stat().st_dev:
        raise RepositoryError(
            f"{repo} is a file system of its own, so nothing can be moved into it in one step",
            hint=f"make the repository a folder in it: --triton-repo {repo / 'models'}",
        )
