"""The declaration of a family, and how a config finds its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from action_export import registries

if TYPE_CHECKING:
    import torch

ModelConfig = Mapping[str, Any]
"""The `model` of a config."""

Patch = Callable[["torch.nn.Module"], None]
"""Changes a model in place so that it can be exported, with equal numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What mmaction2 leaves open and an export must settle.

    note: what the user should know of it. record: the same in full, for the manifest.
    """

    note: str
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Recognizers that are exported alike.

    matches: whether the `model` of a config belongs to it, told by classes and not by names: a
        class of the user's own belongs where the class of mmaction2 does that it is derived from.
    zoo: the folders of mmaction2's configs/recognition whose configs belong to it.
    decisions: applied before mmaction2 runs, so reference and graph share them: only for what
        mmaction2 cannot repeat, or cannot run on a CPU at all. None where it leaves nothing open.
    patches: applied, in order, between the reference and the trace. They and the decisions
        change modules of mmaction2's very classes: what the user has derived stays as it is.
    tolerance: bound of the proof for scores, as a share of the reference's spread over classes.
    """

    name: str
    matches: Callable[[ModelConfig], bool]
    zoo: tuple[str, ...] = ()
    decisions: tuple[Callable[[torch.nn.Module], Decision | None], ...] = ()
    patches: tuple[Patch, ...] = ()
    tolerance: float = 1e-4


def family_of(model: ModelConfig, families: tuple[Family, ...]) -> Family:
    """The first family that matches; the last ones of the registry match any recognizer."""
    return next(family for family in families if family.matches(model))


def decide(model: torch.nn.Module, family: Family) -> tuple[Decision, ...]:
    """Settles, in place, what mmaction2 leaves open."""
    settled = (decision(model) for decision in family.decisions)
    return tuple(decision for decision in settled if decision is not None)


def patch(model: torch.nn.Module, family: Family) -> None:
    """Makes the model exportable, in place; what it computes stays the same."""
    for change in family.patches:
        change(model)


def has(part: str, kind: str) -> Callable[[ModelConfig], bool]:
    """Matches models whose `part` (backbone, neck, cls_head) is this class of mmaction2's."""
    return lambda model: registries.part_base(model, part) == kind


def recognizes(kind: str) -> Callable[[ModelConfig], bool]:
    """Matches models that are this recognizer of mmaction2's."""
    return lambda model: registries.model_base(model) == kind
