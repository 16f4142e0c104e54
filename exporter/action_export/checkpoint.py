"""Reads the checkpoint that the user has, and puts its weights into the config's model."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from action_export.errors import CheckpointError, first_line
from action_export.mmaction_compat import quiet
from action_export.source import RecognizerConfig, build_untrained, file_sha256

if TYPE_CHECKING:
    import torch

_CORES = ("core", "_core")
_SHOWN_KEYS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """state_dict: weights by name. classes: the labels in the metadata, or empty."""

    path: Path
    sha256: str
    state_dict: Mapping[str, torch.Tensor]
    classes: tuple[str, ...]


def load_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Reads an mmengine checkpoint or a bare state dict.

    Of an EMA checkpoint `state_dict` is taken: mmengine's EMAHook stores the averaged weights
    there. Unless trusted, nothing in the file can run code.

    Raises:
        CheckpointError: not found, truncated, no weights in it, or it needs `trust`.
    """
    data = _read_checkpoint(path, trust=trust)
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    weights = _weights(state)
    if not weights:
        raise CheckpointError(
            f"{path} has no weights: neither a `state_dict` nor a bare state dict",
            hint="give the .pth file that mmengine's training wrote",
        )
    meta = data.get("meta")
    return Checkpoint(
        path=path, sha256=file_sha256(path), state_dict=weights, classes=_classes(meta)
    )


def _read_checkpoint(path: Path, *, trust: bool) -> Any:
    import torch

    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}", hint="check the path")
    if not _looks_like_torch(path):
        raise _broken(path, ValueError("neither a zip archive nor a pickle"))
    try:
        with quiet(), torch.serialization.safe_globals(_training_state_globals()):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as exc:
        # torch has one exception for a broken pickle and for one that needs code.
        if not re.search("unsupported|unrecognized|getattr of", str(exc), re.IGNORECASE):
            raise _broken(path, exc) from exc
        raise CheckpointError(
            f"{path} holds Python objects, which can run code while they are read",
            hint="if you trust its source, add --trust-checkpoint",
        ) from exc
    except ImportError as exc:  # only a trusted checkpoint may import
        raise CheckpointError(
            f"{path} needs code that is not installed: {first_line(exc)}",
            hint="install the package that it was trained with",
        ) from exc
    # Damaged bytes make an unpickler raise anything, and so does the code of a trusted checkpoint.
    except Exception as exc:
        raise _broken(path, exc) from exc


def _looks_like_torch(path: Path) -> bool:
    """torch.save writes a zip archive, and before torch 1.6 a pickle of protocol 2 or later."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise CheckpointError(
            f"{path} cannot be read: {exc.strerror}", hint="check its permissions"
        ) from exc
    return magic == b"PK\x03\x04" or magic[:1] == b"\x80"


def _broken(path: Path, exc: Exception) -> CheckpointError:
    reason = first_line(exc).split(". ")[0]
    return CheckpointError(
        f"{path} is truncated or is no torch checkpoint: {reason}",
        hint="compare its size with the original's and copy it again",
    )


def _training_state_globals() -> list[Any]:
    """What mmengine's CheckpointHook stores beside the weights: log histories, as plain data."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    def history_method(owner: Any, name: str) -> Any:
        # A HistoryBuffer's statistics are pickled as getattr(HistoryBuffer, name). Nothing but
        # that may be looked up: a general getattr would be a way to run code.
        if owner is not HistoryBuffer or name.startswith("_"):
            raise pickle.UnpicklingError(f"Weights only load failed: getattr of {name!r}")
        return getattr(owner, name)

    arrays: Any = np.core.multiarray
    return [
        HistoryBuffer,
        (history_method, "__builtin__.getattr"),
        (history_method, "builtins.getattr"),
        # The second name is NumPy 2's.
        *((arrays._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in _CORES),
        *((arrays.scalar, f"numpy.{core}.multiarray.scalar") for core in _CORES),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "u4", "b1")),
    ]


def _weights(state: Any) -> dict[str, torch.Tensor]:
    """Tensors by name, without DataParallel's prefix; empty if `state` is no state dict."""
    import torch

    if not isinstance(state, Mapping):
        return {}
    return {
        str(key).removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _classes(meta: Any) -> tuple[str, ...]:
    match meta:
        case {"dataset_meta": {"classes": [*names]}} | {"CLASSES": [*names]}:
            return tuple(map(str, names))
        case _:
            return ()


def build_model(config: RecognizerConfig, checkpoint: Checkpoint) -> torch.nn.Module:
    """The recognizer with the checkpoint's weights, in eval mode on the CPU.

    Raises:
        DependencyError: the backbone's package is not installed, or does not import.
        ConfigError: mmaction2 cannot build the model.
        CheckpointError: keys are missing, unexpected or of another shape.
    """
    model = build_untrained(config)
    _check_shapes(model, checkpoint)
    result = model.load_state_dict(dict(checkpoint.state_dict), strict=False)
    missing = [f"missing {key}" for key in result.missing_keys]
    unexpected = [f"unexpected {key}" for key in result.unexpected_keys]
    if missing or unexpected:
        hint = "the checkpoint belongs to another config"
        raise _misfit(checkpoint, hint, missing, unexpected)
    return model.eval()


def _check_shapes(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    expected = model.state_dict()
    wrong = {
        key: (tuple(value.shape), tuple(expected[key].shape))
        for key, value in checkpoint.state_dict.items()
        if key in expected and value.shape != expected[key].shape
    }
    if not wrong:
        return
    problems = [
        f"{key} is {list(have)}, the config has {list(want)}" for key, (have, want) in wrong.items()
    ]
    hint = "the checkpoint belongs to another config"
    # Another class count changes the first axis of the head's weight and bias, and nothing else.
    counts = {
        have[:1] if key.startswith("cls_head.") and have[1:] == want[1:] else ()
        for key, (have, want) in wrong.items()
    }
    match list(counts):
        case [(classes,)]:
            hint = (
                f"the checkpoint has {classes} classes: "
                f"--cfg-options model.cls_head.num_classes={classes}"
            )
    raise _misfit(checkpoint, hint, problems)


def _misfit(checkpoint: Checkpoint, hint: str, *problems: list[str]) -> CheckpointError:
    shown = [problem for kind in problems for problem in kind[:_SHOWN_KEYS]]
    more = sum(map(len, problems)) - len(shown)
    if more:
        shown.append(f"and {more} more")
    return CheckpointError(
        f"{checkpoint.path} does not fit the config: " + "; ".join(shown), hint=hint
    )
