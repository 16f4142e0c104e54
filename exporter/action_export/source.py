"""Reads the config that the user has into typed values, and builds the model of it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from action_export import config_file, registries
from action_export.errors import ConfigError, DependencyError, first_line
from action_export.evaluation import Transform, evaluation_of
from action_export.mmaction_compat import import_mmaction, quiet
from action_export.types import Modality

if TYPE_CHECKING:
    import torch

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

    model: as mmengine builds it, with the very classes that the config gives.
    pipeline: the transforms that mmaction2's test loop runs.
    modality: the test dataset's; optical flow has two channels, x and y.
    pipeline_key, preprocessor_key: where --cfg-options finds the pipeline, the data_preprocessor.
    notes: decisions taken here that the user should know of.
    """

    name: str
    path: Path
    sha256: str
    model: Mapping[str, Any]
    pipeline: tuple[Transform, ...]
    modality: Modality = "RGB"
    pipeline_key: str = "test_pipeline"
    preprocessor_key: str = "model.data_preprocessor"
    notes: tuple[str, ...] = ()

    @property
    def recognizer(self) -> str:
        """mmaction2's name of the model's class; of the user's own, "module.name"."""
        return registries.name_of(registries.resolved(self.model, "MODELS"), "models")


def load_config(name_or_path: str, cfg_options: tuple[str, ...] = ()) -> RecognizerConfig:
    """Reads a config file, or the zoo config of that name that mmaction2's wheel ships.

    A config is a program, and is run; the modules that it names are imported.
    cfg_options: "key=value" overrides in mmengine's syntax, applied before anything is read.

    Raises:
        ConfigError: not found, not readable, or not the config of a recognizer.
        UnsupportedError: a recognizer that takes something else than frames, or a test that
            does what cannot be served.
        DependencyError: what mmengine needs to read it is missing.
    """
    path = config_file.find(name_or_path)
    with config_file.importable(path):
        cfg = config_file.read(path, cfg_options)
        found = evaluation_of(path, partial(config_file.value, path, cfg))
    return RecognizerConfig(
        name=path.stem,
        path=path,
        sha256=file_sha256(path),
        model=found.model,
        pipeline=found.pipeline,
        modality=found.modality,
        pipeline_key=found.pipeline_key,
        preprocessor_key=found.preprocessor_key,
        notes=found.notes,
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

    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS

    cfg = deepcopy(dict(config.model))
    if cfg.get("backbone", {}).get("pretrained"):
        cfg["backbone"]["pretrained"] = None
    try:
        with quiet(), config_file.importable(config.path):
            # as mmengine's Runner builds and wraps the model of a test
            model = revert_sync_batchnorm(MODELS.build(cfg))
    # A model's constructor is foreign code that can raise anything on a wrong argument.
    except Exception as exc:
        hint = "mend `model` in the config, or override it with --cfg-options"
        if "registry. Please check" in str(exc):
            hint = "custom_imports = dict(imports=['MODULE']) imports classes of your own"
        raise ConfigError(
            f"mmaction2 cannot build the model of {config.path.name}: "
            f"{first_line(exc).partition(' Please check')[0]}",
            hint=hint,
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
