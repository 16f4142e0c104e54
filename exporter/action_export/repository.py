"""The model repository: what is written is planned in pure code, and written in one place."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from action_runtime.spec import PARAMETER, Contract, ContractError

from action_export.errors import ContractChangedError, NameRefusedError, RepositoryError
from action_export.types import Device, Tensors

_INSTANCE_KINDS: dict[Device, str] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}

_DISK_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The three models of one export."""

    ensemble: str

    @property
    def preprocess(self) -> str:
        return f"{self.ensemble}_preprocess"

    @property
    def recognizer(self) -> str:
        return f"{self.ensemble}_recognizer"

    def __iter__(self) -> Iterator[str]:
        """In the order of publishing: what the ensemble needs comes before it."""
        return iter((self.preprocess, self.recognizer, self.ensemble))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an export will add to a repository; nothing is written to make one.

    All paths are relative to the repository.
    texts: content of each file that is known before the graph is traced and proved.
    graph, manifest: files that are written after that.
    replaces: files of the repository that get a new content.
    """

    repo: Path
    names: Names
    version: int
    texts: dict[str, str]
    graph: str
    manifest: str
    replaces: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted((*self.texts, self.graph, self.manifest)))


def check_name(name: str) -> Names:
    """Raises NameRefusedError for what Triton, a URL or a file system would not take."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", name) and ".." not in name:
        return Names(ensemble=name)
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "model"
    raise NameRefusedError(
        f"{name!r} is no model name: letters, digits, '_', '-' and single '.' are",
        hint=f"--name {slug[:200]}",
    )


def plan(
    repo: Path,
    names: Names,
    *,
    contract: Contract,
    tensors: Tensors,
    device: Device = "auto",
    version: int | None = None,
) -> Plan:
    """Decides the version and renders every file but the graph and the manifest.

    Raises:
        ContractChangedError: the name is taken by a model with another contract or other tensors.
        RepositoryError: the target is no directory, or the version exists.
    """
    if repo.exists() and not repo.is_dir():
        raise RepositoryError(f"{repo} is a file", hint="give --triton-repo a directory")
    published = _published_versions(repo, names)
    texts = _render(names, contract=contract, tensors=tensors, device=device)
    if published:
        _check_compatible(repo, names, contract, texts)
    elif taken := [name for name in names if (repo / name).exists()]:
        raise RepositoryError(
            f"{repo / taken[0]} exists and was not written by action-export",
            hint="give another --name, or remove it",
        )
    chosen = version if version is not None else max(published, default=0) + 1
    if chosen < 1 or chosen in published:
        state = "is published already" if chosen in published else "is no version"
        raise RepositoryError(
            f"version {chosen} of {names.ensemble} {state}",
            hint=f"--model-version {max(published, default=0) + 1} is free",
        )
    versioned = {f"{names.preprocess}/{chosen}/{path}": text for path, text in _runtime().items()}
    return Plan(
        repo=repo,
        names=names,
        version=chosen,
        texts={**texts, **versioned},
        graph=f"{names.recognizer}/{chosen}/model.onnx",
        manifest=f"{names.ensemble}/{chosen}/manifest.json",
        replaces=tuple(path for path in texts if (repo / path).exists()),
    )


@contextmanager
def staging(repo: Path) -> Iterator[Path]:
    """A folder beside the repository, on the same file system, that is gone afterwards.

    Beside, because Triton takes every folder inside a repository for a model, and 1.tmp in a
    model for version 1.

    Raises:
        RepositoryError: the folder cannot be made, or the disk failed the block.
    """
    parent = repo.absolute().parent
    try:
        with ExitStack() as undo:
            for folder in _make_parents(parent):
                undo.callback(_remove_if_empty, folder)
            stage = Path(tempfile.mkdtemp(prefix=f".{repo.name}.staging-", dir=parent))
            undo.callback(shutil.rmtree, stage, ignore_errors=True)
            _check_same_device(repo, stage)
            yield stage
    except OSError as exc:
        if exc.errno not in _DISK_ERRORS:
            raise
        raise RepositoryError(
            f"{exc.filename or parent} cannot be written: {exc.strerror}",
            hint="free space or change permissions there, or give another --triton-repo",
        ) from exc


def write(plan: Plan, stage: Path) -> None:
    """Writes the texts of the plan below `stage`, and makes the folders of the other files."""
    for path, text in plan.texts.items():
        target = stage / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path in (plan.graph, plan.manifest):
        (stage / path).parent.mkdir(parents=True, exist_ok=True)


def publish(plan: Plan, stage: Path) -> None:
    """Moves the staged models into the repository, or leaves it as it was.

    A new model arrives by one rename. Of a model that is there the version arrives first, then its
    config. The ensemble comes last: until its config is there, clients see what they saw before.

    Raises:
        RepositoryError: a step failed, and every earlier one was undone.
    """
    done: list[Callable[[], None]] = []
    try:
        for act, undo in _steps(plan, stage):
            act()
            done.append(undo)
    except BaseException as exc:
        for undo in reversed(done):
            undo()
        if isinstance(exc, OSError):
            raise RepositoryError(
                f"{plan.repo} cannot be written: {exc.strerror or exc} ({exc.filename})",
                hint="it was left as it was; mend this and export again",
            ) from exc
        raise


_Step = tuple[Callable[[], None], Callable[[], None]]


def _steps(plan: Plan, stage: Path) -> Iterator[_Step]:
    """(do, undo) pairs. Each is one rename, so that each is done whole or not at all."""
    if not plan.repo.exists():
        yield plan.repo.mkdir, plan.repo.rmdir
    for name in plan.names:
        model, staged = plan.repo / name, stage / name
        if not model.exists():
            yield _move(staged, model)
            continue
        yield _move(staged / str(plan.version), model / str(plan.version))
        # the labels come before the config that names them
        for text in sorted(plan.texts, key=lambda path: path.endswith("config.pbtxt")):
            folder, _, file = text.rpartition("/")
            if folder == name:
                yield _replace(staged / file, model / file, stage / f"{name}.{file}.before")


def _move(source: Path, target: Path) -> _Step:
    return lambda: os.rename(source, target), lambda: os.rename(target, source)


def _replace(source: Path, target: Path, backup: Path) -> _Step:
    def act() -> None:
        if target.exists():
            # a second name of the same file: undoing brings back the very inode
            os.link(target, backup)
        os.replace(source, target)

    def undo() -> None:
        if backup.exists():
            os.replace(backup, target)
        else:
            target.unlink()

    return act, undo


def _make_parents(parent: Path) -> list[Path]:
    """Makes the missing folders above the repository; the innermost is last in the result."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _check_same_device(repo: Path, stage: Path) -> None:
    if repo.exists() and repo.stat().st_dev != stage.stat().st_dev:
        raise RepositoryError(
            f"{repo} is a file system of its own, so nothing can be moved into it in one step",
            hint=f"make the repository a folder in it: --triton-repo {repo / 'models'}",
        )


def _published_versions(repo: Path, names: Names) -> set[int]:
    """Versions of a model that action-export wrote; empty where there is none."""
    if _published_contract(repo, names) is None:
        return set()
    folders = (repo / names.ensemble).iterdir()
    return {int(folder.name) for folder in folders if folder.name.isdigit() and folder.is_dir()}


def _published_contract(repo: Path, names: Names) -> Contract | None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = repo / names.ensemble / "config.pbtxt"
    if not config.is_file():
        return None
    try:
        message = text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())
        return Contract.from_json(message.parameters[PARAMETER].string_value)
    except (text_format.ParseError, ContractError):
        return None


def _check_compatible(repo: Path, names: Names, contract: Contract, texts: dict[str, str]) -> None:
    """A new version must not change what clients rely on; provenance may differ."""
    before = _published_contract(repo, names)
    assert before is not None
    changed = [
        field
        for field in ("sampler", "resize", "crop", "classes", "average", "channels", "reads_fps")
        if getattr(before, field) != getattr(contract, field)
    ]
    if before.labels != contract.labels:
        changed.append("labels")
    for name in (names.preprocess, names.recognizer):
        config = repo / name / "config.pbtxt"
        if not config.is_file():
            raise RepositoryError(
                f"{config} is missing, so {names.ensemble} is incomplete",
                hint="restore it, or give another --name",
            )
        old, new = _parse(config.read_text("utf-8")), _parse(texts[f"{name}/config.pbtxt"])
        if (list(old.input), list(old.output)) != (list(new.input), list(new.output)):
            changed.append(f"tensors of {name}")
    if changed:
        raise ContractChangedError(
            f"{names.ensemble} is published in {repo} with another contract: "
            f"{', '.join(changed)} would change",
            hint="its clients would break; publish under a new --name",
        )


def _parse(text: str) -> Any:
    """The config as protobuf; a field that Triton does not know is an error here already."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _render(
    names: Names, *, contract: Contract, tensors: Tensors, device: Device
) -> dict[str, str]:
    """config.pbtxt of the three models, each parsed as protobuf, and labels.txt."""
    environment = _environment()
    values = {
        "names": names,
        "tensors": tensors,
        "labels": contract.labels,
        "contract": {"key": PARAMETER, "text": contract.to_json()},
        "instance_kind": _INSTANCE_KINDS[device],
    }
    templates = {
        names.preprocess: "preprocess",
        names.recognizer: "recognizer",
        names.ensemble: "ensemble",
    }
    texts = {
        f"{name}/config.pbtxt": environment.get_template(f"{template}.pbtxt.j2").render(values)
        for name, template in templates.items()
    }
    for text in texts.values():
        _parse(text)
    if contract.labels:
        texts[f"{names.recognizer}/labels.txt"] = "\n".join(contract.labels) + "\n"
    return texts


def _runtime() -> dict[str, str]:
    """model.py and the package action_runtime, as they stand, by path in the version folder."""
    import action_runtime

    shim = _environment().get_template("model.py.j2").render()
    root = Path(str(action_runtime.__file__)).parent
    modules = {
        f"action_runtime/{path.relative_to(root)}": path.read_text("utf-8")
        for path in sorted(root.rglob("*.py"))
    }
    return {"model.py": shim, **modules}


def _environment() -> Any:
    from google.protobuf.text_encoding import CEscape
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("action_templates", package_path=""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = lambda text: f'"{CEscape(text, as_utf8=True)}"'
    return environment
