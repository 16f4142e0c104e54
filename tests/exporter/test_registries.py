"""A type is what mmengine's registries resolve it to, not its name."""

from __future__ import annotations

from typing import Any

import pytest
from action_export.mmaction_compat import import_mmaction
from action_export.registries import (
    mmactions_base,
    mmactions_name,
    name_of,
    part_base,
    resolved,
)

import_mmaction()

import mmcv.transforms  # noqa: E402
from mmaction.datasets import transforms  # noqa: E402
from mmaction.models import Recognizer3D, TANet  # noqa: E402


class Resize(transforms.Resize):  # type: ignore[misc]
    """Of the user's own, by a name of mmaction2's."""


@pytest.mark.parametrize(
    "kind",
    [
        "Resize",
        "mmaction.Resize",
        "mmaction.datasets.transforms.Resize",
        "mmaction.datasets.transforms.processing.Resize",
        transforms.Resize,
    ],
)
def test_every_way_to_name_a_class_leads_to_it(kind: Any) -> None:
    found = resolved({"type": kind}, "TRANSFORMS")
    assert found is transforms.Resize
    assert name_of(found, "datasets.transforms") == "Resize"


@pytest.mark.parametrize(
    ("entry", "scope"),
    [
        ({"type": "Resize", "_scope_": "mmengine"}, "mmaction"),
        ({"type": "Resize"}, "mmengine"),
        ({"type": "mmengine.Resize"}, "mmaction"),
        ({"type": "mmcv.transforms.Resize"}, "mmaction"),
    ],
)
def test_a_name_in_another_scope_is_another_class(entry: dict[str, Any], scope: str) -> None:
    found = resolved(entry, "TRANSFORMS", scope)
    assert found is mmcv.transforms.Resize
    assert mmactions_name(found, "datasets.transforms") is None
    assert name_of(found, "datasets.transforms") == "mmcv.transforms.processing.Resize"


@pytest.mark.parametrize("kind", ["NoSuchTransform", "no_such_module.Resize", "mmaction.NoSuch"])
def test_what_is_found_nowhere_is_none(kind: str) -> None:
    assert resolved({"type": kind}, "TRANSFORMS") is None


def test_the_users_class_by_the_same_name_is_not_mmaction2s() -> None:
    assert mmactions_name(Resize, "datasets.transforms") is None
    assert name_of(Resize, "datasets.transforms").endswith("test_registries.Resize")
    assert mmactions_base(Resize, "datasets.transforms") == "Resize"


def test_a_part_is_looked_up_in_the_scope_of_its_model() -> None:
    backbone = {"type": "TANet"}
    assert part_base({"type": Recognizer3D, "backbone": backbone}, "backbone") == "TANet"
    other = {"type": Recognizer3D, "_scope_": "mmengine", "backbone": backbone}
    assert part_base(other, "backbone") is None
    mine = type("TANet", (TANet,), {})
    assert part_base({"type": Recognizer3D, "backbone": {"type": mine}}, "backbone") == "TANet"
    theirs = type("TANet", (), {})
    assert part_base({"type": Recognizer3D, "backbone": {"type": theirs}}, "backbone") is None
