"""The model repository: what is written is planned in pure code, and written in one place."""

from __future__ import annotations

import dataclasses
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
from action_export.image import DOCKERFILE, OPENCV, needs_opencv
from action_export.triton import ONNX_RUNTIME, RecognizerRuntime
from action_export.types import Device, Tensors

SCRIPT = "build_plan.sh"
"""What builds a plan in the serving image, in the version folder of the recognizer."""

_INSTANCE_KINDS: dict[Device, str] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}

_DISK_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.ENAMETOOLONG),
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
    runtime: RecognizerRuntime = ONNX_RUNTIME,
    device: Device = "auto",
    version: int | None = None,
    image: str = "24.10-py3",
) -> Plan:
    """Decides the version and renders every file but the graph and the manifest.

    image: the tag of NVIDIA's image that serves it.

    Raises:
        ContractChangedError: the name is taken by a model with another contract or other tensors.
        RepositoryError: the target cannot be read or is no directory, or the version is taken.
    """
    texts = _render(names, contract=contract, tensors=tensors, runtime=runtime, device=device)
    with _disk_errors(f"{repo} cannot be read"):
        if repo.exists() and not repo.is_dir():
            raise RepositoryError(f"{repo} is a file", hint="give --triton-repo a directory")
        before = _published_contract(repo, names)
        if before is not None:
            _check_compatible(repo, names, before, contract, texts)
        elif taken := [name for name in names if (repo / name).exists()]:
            raise RepositoryError(
                f"{repo / taken[0]} exists, and is no part of a published {names.ensemble}",
                hint="give another --name, or remove it",
            )
        latest = _latest_version(repo, names)
        replaces = tuple(path for path in texts if (repo / path).exists())
    chosen = latest + 1 if version is None else version
    if chosen <= latest:
        raise RepositoryError(
            f"version {chosen} of {names.ensemble} is no new one: the next is {latest + 1}",
            hint=f"--model-version {latest + 1} or higher; Triton serves the highest",
        )
    versioned = {f"{names.preprocess}/{chosen}/{path}": text for path, text in _runtime().items()}
    if needs_opencv(contract):
        template = _environment().get_template("Dockerfile.j2")
        path = f"{names.preprocess}/{chosen}/{DOCKERFILE}"
        versioned[path] = template.render(image=image, opencv=OPENCV)
    if runtime.script is not None:
        folder = f"{names.recognizer}/{chosen}"
        template = _environment().get_template("build_plan.sh.j2")
        versioned[f"{folder}/{SCRIPT}"] = template.render(
            script=runtime.script, plans=runtime.plans, folder=folder
        )
    return Plan(
        repo=repo,
        names=names,
        version=chosen,
        texts={**texts, **versioned},
        graph=f"{names.recognizer}/{chosen}/{runtime.writes}",
        manifest=f"{names.ensemble}/{chosen}/manifest.json",
        replaces=replaces,
    )


@contextmanager
def staging(repo: Path) -> Iterator[Path]:
    """A folder beside the repository, on the same file system, that is gone afterwards.

    Beside, because Triton takes every folder inside a repository for a model, and 1.tmp in a
    model for version 1.

    Raises:
        RepositoryError: the folder cannot be made, or the disk failed the block.
    """
    # of a repository that is a symbolic link, beside the folder that it leads to
    parent = Path(os.path.realpath(repo)).parent
    with _disk_errors(f"{parent} cannot be written"), ExitStack() as undo:
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            undo.callback(_remove_if_empty, folder)
        stage = Path(tempfile.mkdtemp(prefix=f".{repo.name}.staging-", dir=parent))
        undo.callback(shutil.rmtree, stage, ignore_errors=True)
        _check_same_device(repo, stage)
        yield stage


@contextmanager
def _disk_errors(fact: str) -> Iterator[None]:
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
    That holds too when the process is killed outright; then what had arrived stays, and the next
    export takes a higher version, or says what to remove.

    Raises:
        RepositoryError: a step failed, and every earlier one was undone.
    """
    undos: list[Callable[[], None]] = []
    try:
        for act, undo in _steps(plan, stage):
            # noted before it acts, because an interrupt may arrive as soon as it has acted
            undos.append(undo)
            act()
    except BaseException as exc:
        _undo(plan, undos)
        if isinstance(exc, OSError):
            raise RepositoryError(
                f"{exc.filename2 or exc.filename or plan.repo} cannot be written: {exc.strerror}",
                hint=f"{plan.repo} was left as it was; mend this and export again",
            ) from exc
        raise


def _undo(plan: Plan, undos: list[Callable[[], None]]) -> None:
    failed: list[OSError] = []
    for undo in reversed(undos):
        try:
            undo()
        except OSError as exc:
            failed.append(exc)
    if failed:
        raise RepositoryError(
            f"{failed[0].filename} cannot be put back: {failed[0].strerror}",
            hint=f"remove version {plan.version} of {', '.join(plan.names)} from {plan.repo}",
        ) from failed[0]


_Step = tuple[Callable[[], None], Callable[[], None]]


def _steps(plan: Plan, stage: Path) -> Iterator[_Step]:
    """(act, undo) pairs. An act is done whole or not at all; an undo of what was not done is none.

    What is new and what is there is the plan's decision, not the disk's: a model that another
    export has published in the meantime is in the way, and stays.
    """
    if not plan.repo.exists():
        yield lambda: plan.repo.mkdir(exist_ok=True), lambda: _remove_if_empty(plan.repo)
    for name in plan.names:
        model, staged = plan.repo / name, stage / name
        if f"{name}/config.pbtxt" not in plan.replaces:
            yield _move(staged, model)
            continue
        yield _move(staged / str(plan.version), model / str(plan.version))
        # the labels come before the config that names them
        for text in sorted(plan.texts, key=lambda path: path.endswith("config.pbtxt")):
            folder, _, file = text.rpartition("/")
            if folder == name:
                yield _replace(staged / file, model / file, stage / f"{name}.{file}.before")


def _move(source: Path, target: Path) -> _Step:
    def undo() -> None:
        if not source.exists():
            os.rename(target, source)

    return lambda: os.rename(source, target), undo


def _replace(source: Path, target: Path, backup: Path) -> _Step:
    def act() -> None:
        if target.exists():
            _back_up(target, backup)
        os.replace(source, target)

    def undo() -> None:
        if source.exists():
            return
        if backup.exists():
            os.replace(backup, target)
        else:
            target.unlink(missing_ok=True)

    return act, undo


def _back_up(file: Path, backup: Path) -> None:
    try:
        # a second name of the same file: undoing brings back the very inode
        os.link(file, backup)
    except OSError:  # some network file systems have no hard links
        shutil.copy2(file, backup)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _check_same_device(repo: Path, stage: Path) -> None:
    if repo.exists() and repo.stat().st_dev != stage.stat().st_dev:
        raise RepositoryError(
            f"{repo} is a file system of its own, so nothing can be moved into it in one step",
            hint=f"make the repository a folder in it: --triton-repo {repo / 'models'}",
        )


def _latest_version(repo: Path, names: Names) -> int:
    """The highest version of the three models, or 0; a killed export may have left one in two."""
    models = [repo / name for name in names if (repo / name).is_dir()]
    folders = [folder for model in models for folder in model.iterdir() if folder.is_dir()]
    return max((int(folder.name) for folder in folders if folder.name.isdecimal()), default=0)


def published_batch(repo: Path, names: Names) -> int | None:
    """max_batch_size of the recognizer that is published; None where there is none.

    RepositoryError: it cannot be read.
    """
    with _disk_errors(f"{repo} cannot be read"):
        config = _read_config(repo / names.recognizer / "config.pbtxt")
    return None if config is None else max(1, int(config.max_batch_size))


def _published_contract(repo: Path, names: Names) -> Contract | None:
    """Of a model that action-export wrote; None where there is none."""
    config = _read_config(repo / names.ensemble / "config.pbtxt")
    if config is None:
        return None
    try:
        return Contract.from_json(config.parameters[PARAMETER].string_value)
    except ContractError:
        return None


def published_labels(repo: Path, names: Names) -> tuple[str, ...] | None:
    """Of the model of that name which action-export wrote; None where there is none.

    Raises:
        RepositoryError: the repository cannot be read.
    """
    with _disk_errors(f"{repo} cannot be read"):
        published = _published_contract(repo, names)
    return None if published is None else published.labels


def _check_compatible(
    repo: Path, names: Names, before: Contract, contract: Contract, texts: dict[str, str]
) -> None:
    """A new version must not change what clients rely on.

    Where it comes from may differ, and what its classes are called: labels.py decides on that.
    """
    changed = [
        field.name
        for field in dataclasses.fields(Contract)
        if field.name not in ("provenance", "config_views", "labels")
        and getattr(before, field.name) != getattr(contract, field.name)
    ]
    for name in (names.preprocess, names.recognizer):
        path = repo / name / "config.pbtxt"
        old, new = _read_config(path), _parse(texts[f"{name}/config.pbtxt"])
        if old is None:
            raise RepositoryError(
                f"{path} is missing or cannot be read, so {names.ensemble} is incomplete",
                hint="restore it, or give another --name",
            )
        if _tensors(old) != _tensors(new):
            changed.append(f"tensors of {name}")
        # the config is of all versions, and would look for the same file in each
        if _runs(old) != _runs(new):
            changed.append(f"backend of {name}")
    if changed:
        raise ContractChangedError(
            f"{names.ensemble} is published in {repo} with another contract: "
            f"{', '.join(changed)} would change",
            hint=_change_hint(before, contract, changed),
        )


def _tensors(config: Any) -> list[Any]:
    """Inputs and outputs, whether or not the classes have names."""
    unnamed = type(config)()
    unnamed.CopyFrom(config)
    for output in unnamed.output:
        output.ClearField("label_filename")
    return [*unnamed.input, *unnamed.output]


def _change_hint(before: Contract, contract: Contract, changed: list[str]) -> str:
    if changed == ["decoder"] and before.decoder == "decord":
        # An earlier action-export wrote no decoder, and what has none is decoded as decord does.
        return (
            f"clients take its frames as decord gives them, and the config trains on those of "
            f"{contract.decoder}, which an earlier action-export did not look at: what is "
            "published differs from mmaction2 where the two decoders do, and older clients know "
            "no other; publish under a new --name"
        )
    return "its clients would break; publish under a new --name"


def _runs(config: Any) -> tuple[str, str]:
    """The backend and the file that it looks for; "" where the file is what the backend expects."""
    return config.backend, config.default_model_filename


def _read_config(path: Path) -> Any | None:
    """A config.pbtxt as protobuf; None where the file is missing or is something else."""
    from google.protobuf.text_format import ParseError

    if not path.is_file():
        return None
    try:
        return _parse(path.read_text("utf-8"))
    except (ParseError, UnicodeDecodeError):
        return None


def _parse(text: str) -> Any:
    """The config as protobuf; a field that Triton does not know is an error here already."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _render(
    names: Names,
    *,
    contract: Contract,
    tensors: Tensors,
    runtime: RecognizerRuntime,
    device: Device,
) -> dict[str, str]:
    """config.pbtxt of the three models, each parsed as protobuf, and labels.txt."""
    environment = _environment()
    values = {
        "names": names,
        "tensors": tensors,
        "recognizer": runtime,
        "labels": contract.labels,
        "contract": {"key": PARAMETER, "text": contract.to_json()},
        "instance_kind": _INSTANCE_KINDS["cpu" if runtime.openvino else device],
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
