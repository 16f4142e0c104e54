"""Reads the config that the user has into typed values, and builds the model of it."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from action_export.errors import (
    ConfigError,
    DependencyError,
    UnsupportedError,
    first_line,
)
from action_export.mmaction_compat import import_mmaction, quiet
from action_export.types import Modality

if TYPE_CHECKING:
    import torch

Transform = Mapping[str, Any]
"""One entry of a pipeline: `type` and the arguments of the transform."""

SUPPORTED_RECOGNIZERS = ("Recognizer2D", "Recognizer3D", "RecognizerOmni")
_BACKBONE_PACKAGES = {
    "timm": ("timm",),
    "torchvision": ("torchvision",),
    # mmpretrain does not declare that it imports torchvision
    "mmpretrain": ("mmpretrain", "torchvision"),
    "mmcls": ("mmcls",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognizerConfig:
    """What is read from a config file; nothing below this asks the file again.

    pipeline: the transforms that mmaction2's test loop runs.
    modality: the test dataset's; optical flow has two channels, x and y.
    pipeline_key: where --cfg-options finds the pipeline.
    notes: decisions taken here that the user should know of.
    """

    name: str
    path: Path
    sha256: str
    model: Mapping[str, Any]
    pipeline: tuple[Transform, ...]
    modality: Modality = "RGB"
    pipeline_key: str = "test_pipeline"
    notes: tuple[str, ...] = ()


def load_config(name_or_path: str, cfg_options: tuple[str, ...] = ()) -> RecognizerConfig:
    """Reads a config file, or the zoo config of that name that mmaction2's wheel ships.

    cfg_options: "key=value" overrides in mmengine's syntax, applied before anything is read.

    Raises:
        ConfigError: not found, not readable, or not the config of a recognizer.
        UnsupportedError: a recognizer that takes something else than frames.
    """
    path = _config_path(name_or_path)
    cfg = _read_config(path, cfg_options)
    model = _plain(cfg.get("model"))
    if not isinstance(model, dict) or "type" not in model:
        raise ConfigError(
            f"{path.name} has no `model = dict(type=...)`, so it is not the config of a recognizer",
            hint="give the config that the checkpoint was trained with",
        )
    model["type"] = _type_name(model["type"])
    _check_recognizer(path, model)
    datasets = _test_datasets(cfg)
    key, pipeline, notes = _test_pipeline(path, cfg, datasets)
    return RecognizerConfig(
        name=path.stem,
        path=path,
        sha256=file_sha256(path),
        model=model,
        pipeline=pipeline,
        modality=_modality(path, datasets),
        pipeline_key=key,
        notes=notes,
    )


def zoo_configs() -> dict[str, Path]:
    """Path of every recognition config that the mmaction2 wheel ships, by name."""
    root = Path(str(import_mmaction().__file__)).parent / ".mim" / "configs" / "recognition"
    return {path.stem: path for path in sorted(root.rglob("*.py"))}


def _config_path(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix == ".py" or len(path.parts) > 1:
        raise ConfigError(
            f"there is no config file {name_or_path}",
            hint="check the path, or give the name of a config of mmaction2's zoo",
        )
    zoo = zoo_configs()
    if name_or_path in zoo:
        return zoo[name_or_path]
    close = _closest(name_or_path, zoo)
    raise ConfigError(
        f"{name_or_path!r} is neither a file nor a config of mmaction2's zoo",
        hint="did you mean " + " or ".join(close) + "?" if close else "give a path to a .py file",
    )


def _closest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three that share the most words with `name`, and then the most of its spelling."""
    words = re.split("[_-]+", name)

    def likeness(candidate: str) -> tuple[int, float]:
        shared = sum(word in candidate for word in words)
        return shared, difflib.SequenceMatcher(None, name, candidate).ratio()

    ranked = sorted(((likeness(candidate), candidate) for candidate in names), reverse=True)
    return [candidate for (shared, ratio), candidate in ranked[:3] if shared or ratio > 0.4]


def _read_config(path: Path, cfg_options: tuple[str, ...]) -> Any:
    import_mmaction()
    from mmengine.config import Config

    try:
        with quiet():
            cfg = Config.fromfile(path)
    # A config is a program: it can raise anything.
    except Exception as exc:
        raise ConfigError(
            f"{path} cannot be read: {type(exc).__name__}: {first_line(exc)}",
            hint="mend the config; it must load with mmengine.Config.fromfile",
        ) from exc
    if cfg_options:
        _override(cfg, cfg_options)
    return cfg


def _override(cfg: Any, cfg_options: tuple[str, ...]) -> None:
    """The same syntax as --cfg-options of mmaction2's own tools, by the same parser."""
    from argparse import ArgumentError, ArgumentParser

    from mmengine.config import DictAction

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    try:
        cfg.merge_from_dict(parser.parse_args(["--cfg-options", *cfg_options]).cfg_options)
    # mmengine raises the last two for a key that leads through what is no dict or list.
    except (ArgumentError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"--cfg-options {' '.join(cfg_options)} cannot be applied: {first_line(exc)}",
            hint="write key=value, as in --cfg-options model.cls_head.num_classes=174",
        ) from exc


def _check_recognizer(path: Path, model: dict[str, Any]) -> None:
    kind = model["type"]
    if kind in SUPPORTED_RECOGNIZERS:
        return
    if kind.startswith(("Recognizer", "MMRecognizer")):
        raise UnsupportedError(
            f"{path.name} has the model {kind!r}, which is not exported",
            hint=f"supported are {', '.join(SUPPORTED_RECOGNIZERS)}",
        )
    raise ConfigError(
        f"{path.name} has the model {kind!r}, which is no recognizer",
        hint=f"supported are {', '.join(SUPPORTED_RECOGNIZERS)}",
    )


def _test_pipeline(
    path: Path, cfg: Any, datasets: Mapping[str, Mapping[str, Any]]
) -> tuple[str, tuple[Transform, ...], tuple[str, ...]]:
    """(key, transforms, notes) of the test dataset's pipeline: mmaction2's test loop runs that."""
    declared = _plain(cfg.get("test_pipeline")) or []
    runs = {
        f"{key}.pipeline": dataset["pipeline"]
        for key, dataset in datasets.items()
        if dataset.get("pipeline")
    }
    key, followed = next(iter(runs.items()), ("test_pipeline", declared))
    if any(run != followed for run in runs.values()):
        raise ConfigError(
            f"the test datasets of {path.name} have different pipelines",
            hint="leave one dataset in test_dataloader.dataset: one model serves one pipeline",
        )
    if not followed:
        raise ConfigError(
            f"{path.name} has neither test_dataloader.dataset.pipeline nor test_pipeline",
            hint="add the test_pipeline that the model is evaluated with",
        )
    notes: tuple[str, ...] = ()
    if declared and declared != followed:
        notes = (
            f"test_pipeline and {key} differ; "
            "followed the latter, which is what mmaction2's test loop runs",
        )
    return key, tuple(_transform(path, entry) for entry in followed), notes


def _modality(path: Path, datasets: Mapping[str, Mapping[str, Any]]) -> Modality:
    """Of all test datasets; mmaction2's default is RGB."""
    named = {f"{key}.modality": dataset.get("modality", "RGB") for key, dataset in datasets.items()}
    for key, modality in named.items():
        if modality not in get_args(Modality):
            raise UnsupportedError(
                f"{key} of {path.name} is {modality!r}, which has no serving equivalent",
                hint=f"served are {' and '.join(map(repr, get_args(Modality)))}",
            )
    match sorted(set(named.values())):
        case []:
            return "RGB"
        case [modality]:
            return cast(Modality, modality)
        case _:
            raise ConfigError(
                f"the test datasets of {path.name} have different modalities",
                hint="leave one dataset in test_dataloader.dataset: one model serves one modality",
            )


def _test_datasets(cfg: Any) -> dict[str, Mapping[str, Any]]:
    dataset = _plain((cfg.get("test_dataloader") or {}).get("dataset"))
    return _unwrapped(dataset, "test_dataloader.dataset")


def _unwrapped(dataset: Any, key: str) -> dict[str, Mapping[str, Any]]:
    """By key, every dataset inside RepeatDataset (`dataset`) and ConcatDataset (`datasets`)."""
    match dataset:
        case {"pipeline": [_, *_]}:
            return {key: dataset}
        case {"dataset": inner}:
            return _unwrapped(inner, f"{key}.dataset")
        case {"datasets": [*inners]}:
            return _unwrapped(inners, f"{key}.datasets")
        case [*inners]:
            found: dict[str, Mapping[str, Any]] = {}
            for position, inner in enumerate(inners):
                found |= _unwrapped(inner, f"{key}.{position}")
            return found
        case {}:
            return {key: dataset}
        case _:
            return {}


def _transform(path: Path, entry: Any) -> Transform:
    match entry:
        case {"type": kind}:
            return {**entry, "type": _type_name(kind)}
        case _:
            raise ConfigError(
                f"the test pipeline of {path.name} has the entry {entry!r}, which has no type",
                hint="each transform is a dict(type=...) with its arguments",
            )


def build_untrained(config: RecognizerConfig) -> torch.nn.Module:
    """The recognizer with the weights of its constructors; nothing is downloaded.

    Raises:
        DependencyError: the backbone's package is not installed, or does not import.
        ConfigError: mmaction2 cannot build the model.
    """
    _check_packages(config)
    import_mmaction()
    from copy import deepcopy

    from mmaction.registry import MODELS

    cfg = deepcopy(dict(config.model))
    if cfg.get("backbone", {}).get("pretrained"):
        cfg["backbone"]["pretrained"] = None
    try:
        with quiet():
            model = MODELS.build(cfg)
    # A model's constructor is foreign code that can raise anything on a wrong argument.
    except Exception as exc:
        raise ConfigError(
            f"mmaction2 cannot build the model of {config.path.name}: {first_line(exc)}",
            hint="mend `model` in the config, or override it with --cfg-options",
        ) from exc
    built: torch.nn.Module = model
    return built.eval()


def required_packages(model: Mapping[str, Any]) -> tuple[str, ...]:
    """What the backbone of a config's `model` needs beside mmaction2, by pip name.

    A backbone that the config gives as a class or function has been imported with the config.
    """
    kind = _backbone_type(model)
    # mmaction2 registers this one of its own backbones only where mmpretrain imports
    scope = "mmpretrain" if kind.rpartition(".")[2] == "MobileOneTSM" else kind.partition(".")[0]
    return _BACKBONE_PACKAGES.get(scope, ())


def _backbone_type(model: Mapping[str, Any]) -> str:
    match model:
        case {"backbone": {"type": str(kind)}}:
            return kind
        case _:
            return ""


def _check_packages(config: RecognizerConfig) -> None:
    """Comes before mmaction2, which says "please install" of a package that is broken, too."""
    packages = required_packages(config.model)
    kind = _backbone_type(config.model)
    needs = f"the backbone {kind} of {config.path.name} needs the Python package"
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise DependencyError(
                f"{needs} {package}, which is not installed", hint=_package_hint(kind)
            )
    for package in packages:
        try:
            with quiet():
                importlib.import_module(package)
        # packages check their environment with asserts and RuntimeErrors alike
        except Exception as exc:
            raise DependencyError(
                f"{needs} {package}, which does not import: {first_line(exc)}",
                hint=_package_hint(kind),
            ) from exc


def _package_hint(kind: str) -> str:
    if kind.startswith("mmcls."):
        later = kind.replace("mmcls", "mmpretrain", 1)
        # The last release of mmcls, 1.0.0rc6, refuses mmcv 2.1.
        return (
            f"--cfg-options model.backbone.type={later} is the same backbone in mmcls's successor"
        )
    return (
        'pip install "action-export[zoo]"; torch and torchvision must be builds of the same kind, '
        "both for the CPU or both for CUDA"
    )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _type_name(kind: Any) -> str:
    """mmengine's newer configs, which are plain Python, name a class by itself."""
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _plain(value: Any) -> Any:
    """mmengine's ConfigDict and its kin as dicts, lists and tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
