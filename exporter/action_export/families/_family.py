"""The declaration of a family, and how a config finds its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Patch = Callable[["torch.nn.Module"], AbstractContextManager[None]]
"""Makes a model exportable while it is entered, with equal numbers, and undoes itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Recognizers that are exported alike.

    matches: whether the `model` of a config belongs to it.
    patches: entered, in order, while the model is traced.
    tolerance: bound of the proof for scores, as a share of the reference's spread over classes.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    patches: tuple[Patch, ...] = ()
    tolerance: float = 1e-3


def family_of(model: Mapping[str, Any], families: tuple[Family, ...]) -> Family:
    """The first family that matches; the last ones of the registry match any recognizer."""
    return next(family for family in families if family.matches(model))


@contextmanager
def patched(module: torch.nn.Module, patches: tuple[Patch, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch(module))
        yield
