"""Imports mmaction2 as its wheel is: one module is missing from it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from action_export.dependencies import require
from action_export.errors import DependencyError, first_line

# mmaction/models/localizers/__init__.py of the 1.2.0 wheel imports `.drn.drn`, which the wheel
# lacks: its packaging left the folder out. A recognizer never uses it.
_MISSING = "mmaction.models.localizers.drn"


def import_mmaction() -> ModuleType:
    """Imports mmaction2 with every registry filled, and returns the package.

    Raises:
        DependencyError: mmaction2 is not installed, or does not import.
    """
    require("mmaction", extra="export")
    try:
        if not _is_in_wheel():
            _install_stub()
        with warnings.catch_warnings():
            # mmcv-lite warns of the compiled operators that it leaves out
            warnings.simplefilter("ignore")
            mmaction = importlib.import_module("mmaction")
            importlib.import_module("mmaction.utils").register_all_modules(init_default_scope=True)
    # It imports an mmpretrain that is installed. Both check their environment with asserts, and
    # torchvision, which mmpretrain imports, raises a RuntimeError where it does not fit torch.
    except Exception as exc:
        raise DependencyError(
            f"mmaction2 does not import: {first_line(exc)}",
            hint='pip install "action-export[export,zoo]" installs versions that work together',
        ) from exc
    return mmaction


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what mmengine and mmaction2 say of their own defaults off the user's terminal.

    mmengine logs to stdout, where it would stand in the middle of a result.
    """
    import logging

    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _is_in_wheel() -> bool:
    """Looks for the folder, because find_spec would import its broken parent package."""
    spec = importlib.util.find_spec("mmaction")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = next(iter(spec.submodule_search_locations))
    return (
        importlib.machinery.PathFinder.find_spec("drn", [f"{root}/models/localizers"]) is not None
    )


def _install_stub() -> None:
    for name in (_MISSING, f"{_MISSING}.drn"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules[f"{_MISSING}.drn"].DRN = type("DRN", (), {})  # type: ignore[attr-defined]
