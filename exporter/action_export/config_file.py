"""Finds a config and reads it as mmengine does, or says why it is none."""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from action_export import inputs
from action_export.dependencies import require
from action_export.errors import ConfigError, DependencyError, first_line
from action_export.mmaction_compat import import_mmaction, quiet


def zoo_configs() -> dict[str, Path]:
    """Path of every recognition config that the mmaction2 wheel ships, by name."""
    require("mmaction", extra="export")
    spec = importlib.util.find_spec("mmaction")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent / ".mim" / "configs" / "recognition"
    return {path.stem: path for path in sorted(root.rglob("*.py"))}


def find(name_or_path: str) -> Path:
    """The file of that path, or the zoo config of that name; nothing heavy is imported.

    Raises:
        ConfigError: there is none, or it is something else than a config.
    """
    inputs.check_config(name_or_path)
    path = Path(name_or_path)
    if os.path.isfile(path):
        return path
    if path.suffix in (".py", ".pth") or len(path.parts) > 1:
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


@contextmanager
def importable(path: Path) -> Iterator[None]:
    """Lets a config's own modules be found beside it and in the working directory.

    They come last: a module of the user's must not stand in for an installed one by its name.
    """
    before = list(sys.path)
    folders = (str(path.resolve().parent), os.getcwd())
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in before]
    try:
        yield
    finally:
        sys.path[:] = before


def _check_beside(path: Path) -> None:
    """Python imports a name once in a process, so a second config's module of that name would be
    the first's.
    """
    folder = path.resolve().parent
    if not os.access(folder, os.R_OK):
        return
    text = path.read_text("utf-8", "replace")
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != folder]
    for beside in folder.iterdir():
        name, found = beside.stem, getattr(sys.modules.get(beside.stem), "__file__", None)
        own = beside / "__init__.py" if beside.is_dir() else beside
        if not found or not own.is_file() or own.samefile(found):
            continue
        installed = importlib.machinery.PathFinder.find_spec(name, elsewhere)
        if installed is None and re.search(rf"\b{re.escape(name)}\b", text):
            raise ConfigError(
                f"{path} needs {own}, and this process has another {name} already: {found}",
                hint="export each of these configs in a process of its own",
            )


def read(path: Path, cfg_options: tuple[str, ...]) -> Mapping[str, Any]:
    """The top-level values of a config; a lazy import in it happens when its value is read.

    Raises:
        ConfigError: it does not load, or would get another config's module by the same name.
    """
    import_mmaction()
    _check_beside(path)
    from mmengine.config import Config

    try:
        with quiet():
            cfg = Config.fromfile(path)
    # A config is a program: it can raise anything.
    except Exception as exc:
        raise unreadable(path, exc) from exc
    if cfg_options:
        _override(cfg, cfg_options)
    values: Mapping[str, Any] = cfg
    return values


def value(path: Path, cfg: Mapping[str, Any], key: str) -> Any:
    """A top-level value, with mmengine's ConfigDict and its kin as dicts, lists and tuples.

    None where there is none. Raises:
        ConfigError: what it imports does not import.
    """
    try:
        with quiet():
            return _plain(cfg.get(key))
    except Exception as exc:
        raise unreadable(path, exc) from exc


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def check_importable(path: Path, kind: str) -> None:
    """Of a dotted type that leads nowhere, as in the dump of a pure-Python config.

    Raises:
        ConfigError: because its module does not import.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    module = kind.rpartition(".")[0]
    if not module or module in MODULE2PACKAGE:  # a scope, whose package may not be installed
        return
    try:
        with quiet():
            importlib.import_module(module)
    # the user's own module, which can raise anything
    except Exception as exc:
        failed = ImportError(f"Failed to import {module}: {first_line(exc)}")
        failed.__cause__ = exc
        raise unreadable(path, failed) from exc


def unreadable(path: Path, exc: Exception) -> ConfigError | DependencyError:
    """Why a config does not load; of a module that is not found, the way to it."""
    chain = list(_chain(exc))
    missing = next((e.name for e in chain if isinstance(e, ModuleNotFoundError) and e.name), None)
    if missing == "pkg_resources":
        return DependencyError(
            f"mmengine needs pkg_resources to read {path}, which setuptools 81 dropped",
            hint='pip install "setuptools>=77.0.3,<81"',
        )
    if missing is None:
        return ConfigError(
            f"{path} cannot be read: {type(exc).__name__}: {first_line(exc)}",
            hint="mend the config; it must load with mmengine.Config.fromfile",
        )
    # mmengine says so of what the config itself names, in custom_imports or by an import
    if any(f"Failed to import {missing}" in str(error) for error in chain):
        return ConfigError(
            f"{path} imports {missing}, which is not found", hint=_search_hint(path, missing)
        )
    return ConfigError(
        f"{path} imports a module that needs {missing}, which is not found",
        hint=f"install the package that has {missing}",
    )


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _search_hint(path: Path, module: str) -> str:
    """The whole command, with the folder that has the module where one above the config does."""
    first = module.partition(".")[0]
    folder = path.resolve().parent
    holders = (
        above
        for above in folder.parents
        if (above / f"{first}.py").is_file() or (above / first).is_dir()
    )
    holder = next(holders, None)
    where = str(holder) if holder else f"FOLDER_THAT_HAS_{first}"
    searched = " and ".join(dict.fromkeys((str(folder), os.getcwd())))
    return (
        f"PYTHONPATH={where} action-export {path} ...; "
        f"searched was {searched}, after what is installed"
    )


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
