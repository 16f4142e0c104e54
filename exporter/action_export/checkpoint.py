"""Reads the checkpoint that the user has, and puts its weights into the config's model.

docs/checkpoints.md tells the rules of both.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from action_export import inputs, pickled
from action_export.errors import CheckpointError, first_line
from action_export.mmaction_compat import quiet
from action_export.source import RecognizerConfig, build_untrained, file_sha256

if TYPE_CHECKING:
    import torch

_SHOWN = 6
_OTHER_CONFIG = "the checkpoint belongs to another config"
_COMPILED = "_orig_mod."
_AVERAGED = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")
"""Where EMAHook of mmengine, mmpretrain's models, timm and others keep a second set of weights."""

_PARTS = ("backbone", "neck", "cls_head", "data_preprocessor")
"""What every recognizer of mmaction2 runs, where it has it."""
_COUNTERS = ("num_batches_tracked", "n_averaged", "steps", "total_ops", "total_params")
"""Of batch normalisation, of averaged weights, and of a profiler: no output depends on them."""
_CLASSIFIERS = ("fc", "head", "classifier")
"""What a backbone that was trained on images ends with, and a recognizer's has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """state_dict: weights by name. classes: the labels in the metadata, or empty.

    notes: what was found beside the weights, and the user should know of.
    """

    path: Path
    sha256: str
    state_dict: Mapping[str, torch.Tensor]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Reads an mmengine checkpoint or a bare state dict.

    Of an EMA checkpoint `state_dict` is taken, as mmaction2's test does: mmengine's EMAHook stores
    the averaged weights there. Unless trusted, nothing in the file can run code.

    Raises:
        CheckpointError: not found, truncated, no weights in it, or it needs `trust`.
    """
    inputs.check_checkpoint(path)
    data = _trusted(path) if trust else _read(path)
    saved = data if isinstance(data, Mapping) else {}
    weights = _weights(saved.get("state_dict", saved))
    if not weights:
        raise _no_weights(path, data)
    classes, unread = _classes(saved.get("meta"))
    return Checkpoint(
        path=path,
        sha256=file_sha256(path),
        state_dict=weights,
        classes=classes,
        notes=(*unread, *_compiled_note(saved.get("state_dict", saved)), *_averaged_note(saved)),
    )


def _read(path: Path) -> Any:
    """What torch saved, with inert objects for everything that is no tensor and no plain data."""
    import torch

    try:
        names = pickled.names_in(path)
    except pickled.NoPickleError as exc:
        raise _broken(path, exc) from exc
    if any(name.startswith("__torch__.") for name in names.unknown):
        raise CheckpointError(
            f"{path} is a model of TorchScript, no checkpoint",
            hint="give the .pth file that it was made of",
        )
    if names.unknown:
        raise _needs_trust(path, names.unknown)
    if names.protocol > pickled.PROTOCOL:
        raise _needs_trust(path, (f"a pickle of protocol {names.protocol}",))
    try:
        with quiet(), torch.serialization.safe_globals(pickled.stand_ins(names)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        named = re.search(r"GLOBAL (\S+)|getattr of \([^)]*\)", str(exc))
        # else one of those that are known is more than it says, such as a dict
        holds = (named[1] or named[0],) if named else names.known
        raise (_needs_trust(path, holds) if holds else _broken(path, exc)) from exc
    # damaged bytes make an unpickler raise anything
    except Exception as exc:
        raise _broken(path, exc) from exc


def _trusted(path: Path) -> Any:
    import torch

    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=False)
    except ImportError as exc:
        raise CheckpointError(
            f"{path} needs code that is not installed: {first_line(exc)}",
            hint="install the package that it was trained with",
        ) from exc
    # Damaged bytes make an unpickler raise anything, and so does the code that is trusted.
    except Exception as exc:
        raise _broken(path, exc) from exc


def _needs_trust(path: Path, names: tuple[str, ...]) -> CheckpointError:
    return CheckpointError(
        f"{path} holds Python objects, which can run code while they are read: {_listed(names)}",
        hint="if you trust its source, add --trust-checkpoint",
    )


def _broken(path: Path, exc: Exception) -> CheckpointError:
    reason = first_line(exc).split(". ")[0]
    return CheckpointError(
        f"{path} is truncated or is no torch checkpoint: {reason}",
        hint="compare its size with the original's and copy it again",
    )


def _no_weights(path: Path, data: Any) -> CheckpointError:
    """Says what there is in place of a `state_dict`."""
    fact = f"{path} has no weights: neither a `state_dict` nor a bare state dict"
    hint = "give the .pth file that mmengine's training wrote"
    if isinstance(data, Mapping):
        elsewhere = [str(key) for key, value in data.items() if _weights(value)]
        if elsewhere:
            fact += f"; {_listed(elsewhere)} would be one"
            hint = f"save it as mmaction2 reads it: {{'state_dict': checkpoint[{elsewhere[0]!r}]}}"
    elif hasattr(data, "state_dict"):
        fact = f"{path} holds a whole model ({type(data).__name__}), not its weights"
        hint = "save its weights: torch.save(model.state_dict(), FILE)"
    return CheckpointError(fact, hint=hint)


def _weights(state: Any) -> OrderedDict[str, torch.Tensor]:
    """Tensors by name, without the prefixes of DataParallel and torch.compile; else empty."""
    import torch

    if not isinstance(state, Mapping):
        return OrderedDict()
    weights = OrderedDict(
        (str(key).replace(_COMPILED, "").removeprefix("module."), value)
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    )
    metadata = getattr(state, "_metadata", None)
    if isinstance(metadata, Mapping):
        # versions of the modules, by which some read older weights: mmengine keeps them, too
        weights._metadata = metadata  # type: ignore[attr-defined]
    return weights


def _classes(meta: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, notes) of the metadata of mmengine, or of mmcv before it."""
    match meta:
        case (
            {"dataset_meta": {"classes": found}}
            | {"dataset_meta": {"CLASSES": found}}
            | {"CLASSES": found}
        ):
            names = pickled.plain(found)
        case _:
            return (), ()
    if isinstance(names, list) and all(isinstance(name, str | int | float) for name in names):
        return tuple(map(str, names)), ()
    if names is None:
        return (), ()
    return (), (
        "the checkpoint's metadata names the classes, but not as a list of texts: no labels are "
        "taken from it",
    )


def _compiled_note(state: Any) -> tuple[str, ...]:
    compiled = [key for key in state if _COMPILED in str(key)]
    if not compiled:
        return ()
    return (
        f"{_COMPILED.rstrip('.')}, which torch.compile puts before the names of weights, was "
        f"stripped from {len(compiled)} of them; mmaction2's own loader does not",
    )


def _averaged_note(saved: Mapping[Any, Any]) -> tuple[str, ...]:
    beside = [key for key in _AVERAGED if key in saved]
    if not beside or "state_dict" not in saved:
        return ()
    return (
        f"the checkpoint has `{beside[0]}` beside `state_dict`: the latter is served, as "
        "mmaction2's test runs it; mmengine's EMAHook stores the averaged weights there",
    )


def build_model(config: RecognizerConfig, checkpoint: Checkpoint) -> torch.nn.Module:
    """The recognizer with the checkpoint's weights, in eval mode on the CPU.

    Raises:
        DependencyError: the backbone's package is not installed, or does not import.
        ConfigError: mmaction2 cannot build the model.
        CheckpointError: keys are missing or of another shape, or such as another model has.
    """
    model = build_untrained(config)
    _check_shapes(model, checkpoint)
    try:
        result = model.load_state_dict(checkpoint.state_dict, strict=False)
    # a module's own way to load may refuse what has the right shape
    except RuntimeError as exc:
        raise _misfit(checkpoint, [first_line(exc)]) from exc
    # mmengine does without this counter as well
    missing = [key for key in result.missing_keys if "num_batches_tracked" not in key]
    foreign = [
        key for key in result.unexpected_keys if missing or _is_foreign(model, checkpoint, key)
    ]
    if missing or foreign:
        raise _misfit(
            checkpoint,
            [f"missing {key}" for key in missing],
            [f"unexpected {key}" for key in foreign],
            hint=_prefix_hint(checkpoint, missing),
        )
    _check_numbers(model, checkpoint)
    return model.eval()


def _check_numbers(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Of NaN every score is NaN, in mmaction2 as well; the proof would look like the wrong one."""
    spoilt = [key for key, value in model.state_dict().items() if bool(value.isnan().any())]
    if spoilt:
        raise CheckpointError(
            f"{checkpoint.path} holds NaN: {_listed(spoilt)}",
            hint="its training has diverged; give an earlier checkpoint",
        )


def unused_note(model: torch.nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Lists what the checkpoint has beyond the model that `build_model` made of it."""
    unused = sorted(checkpoint.state_dict.keys() - model.state_dict().keys())
    if not unused:
        return ()
    return (
        f"{len(unused)} tensors of the checkpoint have no place in the model and no part in its "
        f"scores; mmaction2's loader leaves them out, too: {_listed(unused)}",
    )


def _is_foreign(model: torch.nn.Module, checkpoint: Checkpoint, key: str) -> bool:
    """Whether an unexpected key shows that the weights were trained in another model.

    It does where it lies in a part that computes scores, as the seventh block of a third stage that
    has six. It does not outside of these parts, in a loss, as a counter, or as the classifier of a
    backbone that was trained on images.
    """
    import torch

    *path, last = key.split(".")
    modules = dict(model.named_modules())
    if not path or last in _COUNTERS or any(part.startswith("loss") for part in path):
        return False
    if path[0] not in modules and path[0] not in _PARTS:
        return False
    if key in (buffers := dict(model.named_buffers())):
        # the config's, such as the mean of the pixels, and not loaded from checkpoints
        have, want = checkpoint.state_dict[key], buffers[key]
        return have.shape != want.shape or not torch.allclose(have.to(want), want)
    around = (".".join(path[:length]) for length in range(len(path), 0, -1))
    inmost = next((modules[name] for name in around if name in modules), None)
    # torchvision's and timm's models have it in the place of their classifier
    if isinstance(inmost, torch.nn.Identity):
        return False
    classifier = path[0] == "backbone" and path[1:2] and path[1] in _CLASSIFIERS
    return not classifier or ".".join(path[:2]) in modules


def _prefix_hint(checkpoint: Checkpoint, missing: list[str]) -> str:
    """Weights of another trainer, such as Lightning's, differ in what their names begin with."""
    for key in checkpoint.state_dict:
        if missing and key.endswith("." + missing[0]):
            prefix = key.removesuffix(missing[0])
            return f"its keys begin with {prefix!r}, which mmaction2 does not strip: rename them"
    return _OTHER_CONFIG


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
    hint = _OTHER_CONFIG
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
    raise _misfit(checkpoint, problems, hint=hint)


def _misfit(
    checkpoint: Checkpoint, *problems: list[str], hint: str = _OTHER_CONFIG
) -> CheckpointError:
    shown = [problem for kind in problems for problem in kind[:_SHOWN]]
    more = sum(map(len, problems)) - len(shown)
    if more:
        shown.append(f"and {more} more")
    return CheckpointError(
        f"{checkpoint.path} does not fit the config: " + "; ".join(shown), hint=hint
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
