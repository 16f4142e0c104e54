"""The bounds of the proof, as numbers: a test that reads a bound cannot tell that it has moved.

A wider bound lets a wrong graph pass, and every other test with it. Whoever changes one changes it
here as well, and says why beside the number in the code.
"""

from __future__ import annotations

import pytest
from action_export import measure, precision, proof
from action_export.families import FAMILIES, Family
from action_export.wire import bound_of
from action_runtime.spec import Jpeg


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_float32_may_differ_by_a_ten_thousandth_of_the_spread(family: Family) -> None:
    assert family.tolerance == 1e-4


def test_reduced_precision_may_differ_by_its_roundings() -> None:
    assert dict(precision.BOUNDS) == {
        "bf16": pytest.approx(0.156, abs=5e-4),
        "fp16": pytest.approx(0.0195, abs=5e-5),
        "int8": pytest.approx(0.156, abs=5e-4),
    }


def test_a_gpu_may_differ_by_a_thousandth() -> None:
    assert proof._GPU_BOUND == 1e-3


def test_two_videos_are_told_apart_by_ten_bounds() -> None:
    assert measure.MARGIN == 10


@pytest.mark.parametrize(
    ("quality", "bound"), [(75, 0.298), (90, 0.117), (95, 0.0586), (100, 0.00488)]
)
def test_jpeg_may_cost_what_its_quality_costs(quality: int, bound: float) -> None:
    assert bound_of(Jpeg(quality=quality, chroma="full")) == pytest.approx(bound, rel=2e-3)


def test_raw_pixels_may_cost_nothing() -> None:
    assert bound_of(None) == 0
