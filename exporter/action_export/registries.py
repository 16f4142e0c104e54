"""What a `type` of a config stands for: the object that mmengine's registries find for it.

A name says nothing by itself. `type` may be a class, a name that the user's own module registered
over mmaction2's, or a name in another scope. So what is read here, and which family a model belongs
to, is decided by the object that mmaction2 would build from.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from action_export.mmaction_compat import import_mmaction, quiet

SCOPE = "mmaction"
"""Where names are looked up unless the config says otherwise."""

Registry = Literal["MODELS", "TRANSFORMS", "DATASETS", "HOOKS", "LOOPS"]
Owner = Literal["models", "datasets.transforms"]
"""The packages of mmaction2 whose classes have readers or families here."""


def scope_of(entry: Mapping[str, Any], around: str = SCOPE) -> str:
    """Where `entry` and what stands in it are looked up; `around` is the scope of its surroundings.

    mmengine writes `_scope_` into what comes from another package's config (`_base_ = "pkg::..."`).
    """
    return str(entry.get("_scope_") or around)


def resolved(entry: Mapping[str, Any], registry: Registry, scope: str = SCOPE) -> Any:
    """The object that mmengine would call to build `entry`; None where it finds none.

    scope: of what surrounds the entry.
    """
    kind = entry.get("type")
    if not isinstance(kind, str):
        return kind
    import_mmaction()
    from mmengine import registry as registries

    root = getattr(registries, registry)
    try:
        with quiet(), root.switch_scope_and_registry(scope_of(entry, scope)) as found:
            return found.get(kind)
    # a dotted name is imported, and the user's own modules can raise anything
    except Exception:
        return None


def resolved_function(kind: Any) -> Any:
    """As `resolved`, of a collate_fn: Runner looks its name up in mmengine's own registry."""
    if not isinstance(kind, str):
        return kind
    from mmengine.registry import FUNCTIONS

    with suppress(Exception), quiet():
        return FUNCTIONS.get(kind)
    return None


def mmactions_name(found: Any, owner: Owner) -> str | None:
    """The name under which mmaction2's package has this very object, or None."""
    import_mmaction()
    name = str(getattr(found, "__name__", ""))
    package = importlib.import_module(f"mmaction.{owner}")
    return name if name and getattr(package, name, None) is found else None


def name_of(found: Any, owner: Owner) -> str:
    """mmaction2's name of its own object; of anyone else's, "module.name"."""
    own = mmactions_name(found, owner)
    if own is not None:
        return own
    name = getattr(found, "__qualname__", None) or type(found).__qualname__
    return f"{getattr(found, '__module__', type(found).__module__)}.{name}"


def mmactions_base(found: Any, owner: Owner) -> str | None:
    """mmaction2's name of a class, or of its nearest ancestor that is mmaction2's; else None."""
    if not inspect.isclass(found):
        return None
    names = (mmactions_name(base, owner) for base in inspect.getmro(found))
    return next((name for name in names if name is not None), None)


def part_base(model: Mapping[str, Any], part: str) -> str | None:
    """mmactions_base of what a part of `model` (backbone, neck, cls_head) is built from."""
    entry = model.get(part)
    if not isinstance(entry, Mapping):
        return None
    return mmactions_base(resolved(entry, "MODELS", scope_of(model)), "models")


def model_base(model: Mapping[str, Any]) -> str | None:
    """mmactions_base of the recognizer itself."""
    return mmactions_base(resolved(model, "MODELS"), "models")
