"""Looks at the paths of a request before anything heavy is imported, and says what they are.

A wrong path is the most frequent mistake, so it must not cost the seconds that torch takes to come.
"""

from __future__ import annotations

import os.path
import re
import stat
from pathlib import Path

from action_export.errors import (
    ActionExportError,
    CheckpointError,
    ConfigError,
    LabelsError,
    RepositoryError,
    VideoError,
    first_line,
)
from action_export.types import ExportRequest

_HEAD = 512
_TORCH_MARK = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""What torch.save before 1.6 began its files with, as a pickled number."""
_SHOWN_NAMES = 3
_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")

_FETCH = {
    "s3": "aws s3 cp {url} .",
    "gs": "gcloud storage cp {url} .",
    "hf": "hf download, or git clone",
    "http": "curl -LO {url}",
    "https": "curl -LO {url}",
}
_PUT = {"s3": "aws s3 sync ./repo {url}", "gs": "gcloud storage rsync -r ./repo {url}"}


def check(request: ExportRequest) -> None:
    """Raises the error of the first path that cannot be what it is given for."""
    check_repository(request.triton_repo)
    if request.config is not None and request.checkpoint is not None:
        _check_config(request.config, request.checkpoint)
        check_checkpoint(request.checkpoint)
    if request.labels is not None:
        # a shell's <(...) is a pipe, and labels are read once, from the start
        _check_file(request.labels, "labels file", LabelsError, pipes=True)
    for video in (*request.videos, *request.calibration):
        _check_file(video, "video file", VideoError)


def check_repository(repo: Path) -> None:
    """Raises RepositoryError for a URL: publishing renames folders, and needs a file system."""
    url = _url(repo)
    if url is None:
        if os.path.isfile(repo):
            raise RepositoryError(f"{repo} is a file", hint="give --triton-repo a directory")
        return
    scheme = url.partition(":")[0]
    if scheme == "file":
        hint = f"give the path itself: --triton-repo {url.partition('://')[2]}"
    else:
        put = _PUT.get(scheme, "copy that folder to {url}").format(url=url)
        hint = f"export to a local folder, then copy it: --triton-repo ./repo, then {put}"
    raise RepositoryError(
        f"{url} is no folder of this machine: nothing can be renamed in it", hint=hint
    )


def check_checkpoint(path: Path) -> None:
    """Raises CheckpointError for what is no file that torch.save has written, by what it is."""
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder", hint=_choose_in(path))
    _check_file(path, "checkpoint file", CheckpointError)
    head = _head(path, CheckpointError)
    if is_torch(head):
        return
    fact, hint = _known(path, head) or (
        "is truncated or is no torch checkpoint: neither a zip archive nor a pickle",
        "compare its size with the original's and copy it again",
    )
    raise CheckpointError(f"{path} {fact}", hint=hint)


def is_torch(head: bytes) -> bool:
    """torch.save writes a zip archive, and before torch 1.6 a pickle of protocol 2 or later."""
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and _TORCH_MARK in head[:40])


def _check_config(config: str, checkpoint: Path) -> None:
    swapped = os.path.isfile(config) and is_torch(_head(Path(config), ConfigError))
    if swapped and checkpoint.suffix == ".py":
        raise ConfigError(
            f"{config} is a checkpoint, and {checkpoint} a config: they are swapped",
            hint=f"action-export {checkpoint} {config} --triton-repo DIR",
        )
    check_config(config)


def check_config(config: str) -> None:
    """Raises ConfigError for what is no config, by what it is; a name of the zoo passes."""
    url = _url(config)
    if url is not None:
        raise ConfigError(f"{url} is no file of this machine", hint=_fetch(url))
    path = Path(config)
    # unlike Path's methods, these say no to a name that no file system takes
    if os.path.isdir(config):
        # mmengine leaves a copy of the config in the work_dir of a training
        inside = " or ".join(map(str, sorted(path.glob("*.py"))[:_SHOWN_NAMES]))
        hint = f"did you mean {inside}?" if inside else "give the .py file of the config"
        raise ConfigError(f"{config} is a folder", hint=hint)
    if not os.path.isfile(config):
        return
    head = _head(path, ConfigError)
    if is_torch(head) or path.suffix in _CHECKPOINTS:
        raise ConfigError(
            f"{config} is a checkpoint, where the config is expected",
            hint="action-export CONFIG CHECKPOINT --triton-repo DIR",
        )
    if path.name == "last_checkpoint":
        checkpoint = head.decode("utf-8", "replace").strip().partition("\n")[0]
        raise ConfigError(
            f"{config} is mmengine's note of its last checkpoint, and no config",
            hint=f"give the config of that training, and then the checkpoint: {checkpoint}",
        )


def _check_file(
    path: Path, what: str, error: type[ActionExportError], *, pipes: bool = False
) -> None:
    url = _url(path)
    if url is not None:
        raise error(f"{url} is no file of this machine", hint=_fetch(url))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"there is no {what} {path}", hint="check the path") from None
    except (OSError, ValueError) as exc:  # a path with a NUL in it is a ValueError
        reason = getattr(exc, "strerror", None) or first_line(exc)
        raise error(f"{path} cannot be read: {reason}", hint="check the path") from exc
    if stat.S_ISDIR(mode):
        raise error(f"{path} is a folder, no {what}", hint="give a file in it")
    if not stat.S_ISREG(mode) and not pipes:
        raise error(f"{path} is a pipe or a device, no {what}", hint="copy its content to a file")


def _url(path: str | Path) -> str | None:
    """The URL that was given as a path, which has made one slash of two; None for a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path), re.DOTALL)
    if match is None or os.path.exists(path):
        return None
    scheme = match[1].lower()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{match[2]}"


def _fetch(url: str) -> str:
    scheme = url.partition(":")[0]
    if scheme == "file":
        return f"give the path itself: {url.partition('://')[2]}"
    command = _FETCH.get(scheme, "copy {url} here").format(url=url)
    return f"fetch it first, and give the path of the file: {command}"


def _head(path: Path, error: type[ActionExportError]) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as exc:
        raise error(f"{path} cannot be read: {exc.strerror}", hint="check its permissions") from exc


def _choose_in(folder: Path) -> str:
    """The newest checkpoints of a work_dir, or of one below it."""
    found = [*folder.glob("*.pth"), *folder.glob("*/*.pth")]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_SHOWN_NAMES]
    if not newest:
        return "give the .pth file that mmengine's training wrote"
    return "did you mean " + " or ".join(map(str, newest)) + "?"


def _known(path: Path, head: bytes) -> tuple[str, str] | None:
    """(what the file is, what to do) of what is given in place of a checkpoint; None if unknown."""
    text = head.decode("utf-8", "replace").strip()
    if path.suffix == ".py":
        return "is a config, no checkpoint", "action-export CONFIG CHECKPOINT --triton-repo DIR"
    if path.name == "last_checkpoint" or re.fullmatch(r"[^\n]+\.pth", text):
        return "is a text file that names the checkpoint", f"give the file that it names: {text}"
    if text.startswith("version https://git-lfs"):
        return "is a pointer of Git LFS, no checkpoint", f"git lfs pull --include {path.name}"
    if re.match(r"<(!doctype )?html", text, re.IGNORECASE):
        return "is a web page: its download has failed", "download the .pth file again"
    if head[257:262] == b"ustar":
        return "is a tar archive", f"unpack it, and give the .pth file in it: tar xf {path}"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")):
        return "is compressed", "unpack it, and give the .pth file in it"
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] == b"\x12"):
        return (
            "is an ONNX graph, which cannot be compared with mmaction2",
            "give the .pth file that the graph was made of",
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return (
            "is a safetensors file, which mmaction2 does not read",
            'convert it: python -c "import safetensors.torch as s, torch; torch.save(s.load_file('
            f"'{path}'), '{path.with_suffix('.pth')}')\"",
        )
    if head[:1] == b"\x80":
        return (
            "is truncated or is no torch checkpoint: a pickle that torch.save did not write",
            "load it with the library that wrote it, and torch.save a dict of its tensors",
        )
    return None
