"""What an export adds to a model repository, planned in pure code and rendered.

`publishing` brings it there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from action_runtime.spec import PARAMETER, Contract, ContractError

from action_export import pbtxt
from action_export.errors import ContractChangedError, NameRefusedError, RepositoryError
from action_export.image import DOCKERFILE, OPENCV, needs_opencv
from action_export.staging import disk_errors
from action_export.triton import ONNX_RUNTIME, RecognizerRuntime
from action_export.types import Device, Tensors

SCRIPT = "build_plan.sh"
"""What builds a plan in the serving image, in the version folder of the recognizer."""

LABELS = "labels.txt"
"""Of each version of the ensemble, so that names and scores change in one step."""

_INSTANCE_KINDS: dict[Device, str] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


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

    @property
    def steps(self) -> tuple[str, str]:
        return self.preprocess, self.recognizer

    def __iter__(self) -> Iterator[str]:
        """In the order of publishing: what the ensemble needs comes before it."""
        return iter((*self.steps, self.ensemble))


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What a server of the repository answers with.

    version: of the ensemble, and of the steps that were proved with it. pinned: the configs say so;
    in those of older releases each model is loaded in the latest version that it has.
    """

    version: int
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an export will add to a repository; nothing is written to make one.

    All paths are relative to the repository.
    texts: content of each file that is known before the graph is traced and proved.
    graph, manifest: files that are written after that.
    live: the version that is there; None of a new model.
    """

    repo: Path
    names: Names
    version: int
    texts: dict[str, str]
    graph: str
    manifest: str
    live: Live | None

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
    with disk_errors(f"{repo} cannot be read"):
        if repo.exists() and not repo.is_dir():
            raise RepositoryError(f"{repo} is a file", hint="give --triton-repo a directory")
        chosen = _chosen_version(repo, names, version)
        texts = _render(
            names,
            contract=contract,
            tensors=tensors,
            runtime=runtime,
            device=device,
            version=chosen,
        )
        before = _published_contract(repo, names)
        if before is not None:
            _check_compatible(repo, names, before, contract, texts)
        elif taken := [name for name in names if (repo / name).exists()]:
            raise RepositoryError(
                f"{repo / taken[0]} exists, and is no part of a published {names.ensemble}",
                hint="give another --name, or remove it",
            )
        there = None if before is None else live(repo, names)
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
        live=there,
    )


def write(plan: Plan, stage: Path) -> None:
    """Writes the texts of the plan below `stage`, and makes the folders of the other files."""
    for path, text in plan.texts.items():
        target = stage / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path in (plan.graph, plan.manifest):
        (stage / path).parent.mkdir(parents=True, exist_ok=True)


def live(repo: Path, names: Names) -> Live:
    """What the repository serves under a name that is published there.

    Raises:
        RepositoryError: its ensemble cannot be one that an export has written.
    """
    ensemble = repo / names.ensemble
    configs = [pbtxt.read(repo / name / "config.pbtxt") for name in names]
    versions = set() if configs[-1] is None else pbtxt.step_versions(configs[-1])
    there = _versions(ensemble)
    if versions == {pbtxt.LATEST} and there:
        return Live(version=max(there), pinned=False)
    if len(versions) == 1 and versions <= there:
        pinned = all(config is not None and pbtxt.is_pinned(config) for config in configs)
        return Live(version=versions.pop(), pinned=pinned)
    raise RepositoryError(
        f"{ensemble / 'config.pbtxt'} runs steps of the versions {sorted(versions)}, and there are "
        f"{sorted(there)} of {names.ensemble}",
        hint="name one version that is there in each model_version, or give another --name",
    )


def _versions(model: Path) -> set[int]:
    folders = [folder.name for folder in model.iterdir() if folder.is_dir()]
    return {int(name) for name in folders if name.isdecimal()}


def _chosen_version(repo: Path, names: Names, asked: int | None) -> int:
    """The one after all that any of the models has, or the one that is asked for."""
    models = [repo / name for name in names if (repo / name).is_dir()]
    latest = max((version for model in models for version in _versions(model)), default=0)
    if asked is not None and asked <= latest:
        raise RepositoryError(
            f"version {asked} of {names.ensemble} is no new one: the next is {latest + 1}",
            hint=f"--model-version {latest + 1} or higher",
        )
    return latest + 1 if asked is None else asked


def published_batch(repo: Path, names: Names) -> int | None:
    """max_batch_size of the recognizer that is published; None where there is none.

    RepositoryError: it cannot be read.
    """
    with disk_errors(f"{repo} cannot be read"):
        config = pbtxt.read(repo / names.recognizer / "config.pbtxt")
    return None if config is None else max(1, int(config.max_batch_size))


def _published_contract(repo: Path, names: Names) -> Contract | None:
    """Of a model that action-export wrote; None where there is none."""
    config = pbtxt.read(repo / names.ensemble / "config.pbtxt")
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
    with disk_errors(f"{repo} cannot be read"):
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
        old, new = pbtxt.read(path), pbtxt.parse(texts[f"{name}/config.pbtxt"])
        if old is None:
            raise RepositoryError(
                f"{path} is missing or cannot be read, so {names.ensemble} is incomplete",
                hint="restore it, or give another --name",
            )
        if pbtxt.tensors(old) != pbtxt.tensors(new):
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


def _change_hint(before: Contract, contract: Contract, changed: list[str]) -> str:
    if changed == ["decoder"] and before.decoder == "decord":
        # An earlier action-export wrote no decoder, and what has none is decoded as decord does.
        return (
            f"clients take its frames as decord gives them, and the config trains on those of "
            f"{contract.decoder}, which an earlier action-export did not look at: what is "
            "published differs from mmaction2 where the two decoders do, and older clients know "
            "no other; publish under a new --name"
        )
    if before.wire is not None and before.wire.chroma == "halved" and contract.wire is not None:
        return (
            "its clients send JPEG with halved chroma, which an earlier action-export wrote and "
            "which loses more than its bound on some videos; publish under a new --name"
        )
    return "its clients would break; publish under a new --name"


def _runs(config: Any) -> tuple[str, str]:
    """The backend and the file that it looks for; "" where the file is what the backend expects."""
    return config.backend, config.default_model_filename


def _render(
    names: Names,
    *,
    contract: Contract,
    tensors: Tensors,
    runtime: RecognizerRuntime,
    device: Device,
    version: int,
) -> dict[str, str]:
    """config.pbtxt of the three models, each parsed as protobuf, and labels.txt."""
    environment = _environment()
    values = {
        "names": names,
        "version": version,
        "tensors": tensors,
        "recognizer": runtime,
        "labels": f"{version}/{LABELS}" if contract.labels else "",
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
        pbtxt.parse(text)
    if contract.labels:
        texts[f"{names.ensemble}/{version}/{LABELS}"] = "\n".join(contract.labels) + "\n"
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
