"""The measure of a difference: what it is a share of, and when it could not tell anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from action_export import measure
from action_export.errors import InconclusiveError
from action_export.reference import Reference, run_mmaction
from support.tiny import MODEL_3D, PIPELINE_3D, VIDEOS, Tiny, make, references

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> tuple[Reference, ...]:
    return references(tiny)


# --- Inconclusive references --------------------------------------------------------------------


def require(*given: Reference) -> None:
    measure.require_distinguishable(given, TOLERANCE)


def test_two_videos_that_mmaction2_tells_apart_are_enough(pair: tuple[Reference, ...]) -> None:
    require(*pair)
    assert measure.distinguishable(pair, TOLERANCE) == pair


def test_one_video_is_inconclusive(pair: tuple[Reference, ...]) -> None:
    with pytest.raises(InconclusiveError, match="1 video") as caught:
        require(pair[0])
    assert "--videos" in caught.value.hint


def test_two_copies_of_one_video_are_inconclusive(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "another.mp4"
    shutil.copy(VIDEOS[0], copy)
    twice = [run_mmaction(tiny.model, tiny.preprocessing, video) for video in (VIDEOS[0], copy)]
    with pytest.raises(InconclusiveError, match="alike") as caught:
        require(*twice)
    assert "--videos" in caught.value.hint
    assert len(measure.distinguishable(tuple(twice), TOLERANCE)) == 1


def constant_for_all_classes(model: Any) -> None:
    torch.nn.init.zeros_(model.cls_head.fc_cls.weight)
    torch.nn.init.zeros_(model.cls_head.fc_cls.bias)


def constant_for_all_videos(model: Any) -> None:
    torch.nn.init.zeros_(model.cls_head.fc_cls.weight)
    torch.nn.init.normal_(model.cls_head.fc_cls.bias)


def not_a_number(model: Any) -> None:
    torch.nn.init.constant_(model.cls_head.fc_cls.bias, float("nan"))


@pytest.mark.parametrize("spoil", [constant_for_all_classes, constant_for_all_videos, not_a_number])
def test_a_model_that_does_not_look_at_its_input_is_inconclusive(
    tiny: Tiny, spoil: Callable[[Any], None]
) -> None:
    model = deepcopy(tiny.model)
    with torch.no_grad():
        spoil(model)
    with pytest.raises(InconclusiveError, match="alike") as caught:
        require(*references(replace(tiny, model=model)))
    assert "trained" in caught.value.hint


def test_references_must_lie_ten_bounds_apart(pair: tuple[Reference, ...]) -> None:
    one = replace(pair[0], scores=np.array([0, 1, 0.5], np.float32))
    near = replace(one, scores=np.array([0, 1, 0.5 + 9e-4], np.float32))
    far = replace(one, scores=np.array([0, 1, 0.5 + 11e-4], np.float32))
    assert measure.distinguishable((one, near), 1e-4) == (one,)
    assert measure.distinguishable((one, far), 1e-4) == (one, far)
    # pairwise: `near` is no further from `far` than from `one`
    assert measure.distinguishable((one, far, near), 1e-4) == (one, far)


def test_one_distinct_pair_among_copies_is_enough(pair: tuple[Reference, ...]) -> None:
    require(pair[0], pair[0], pair[1])


@pytest.mark.parametrize(
    ("videos", "size", "order"),
    [(2, 2, "ab"), (2, 3, "aab"), (2, 4, "aabb"), (2, 8, "aaaabbbb"), (3, 3, "abc"), (3, 2, "ab")],
)
def test_no_order_of_rows_is_the_same_from_behind_or_repeats(
    pair: tuple[Reference, ...], videos: int, size: int, order: str
) -> None:
    named = [replace(pair[0], video=Path(name)) for name in "abc"[:videos]]
    assert "".join(str(row.video) for row in measure.mixed_rows(tuple(named), size)) == order
    assert order != order[::-1]
    assert all(order != (order[:period] * size)[:size] for period in range(1, size))


# --- The measure, and what is told --------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_is_an_error_wherever_it_stands(pair: tuple[Reference, ...], place: int) -> None:
    rows = [(reference.scores.copy(), reference) for reference in (*pair, pair[0])]
    assert measure.compare_scores("rows", rows, TOLERANCE).passed
    rows[place][0][-1] = float("nan")
    assert not measure.compare_scores("rows", rows, TOLERANCE).passed


def test_a_difference_is_measured_by_the_spread_of_the_reference(
    pair: tuple[Reference, ...],
) -> None:
    flat = replace(pair[0], scores=np.array([0.1, 0.1001, 0.1], np.float32))
    moved = flat.scores + np.array([0, 0, 1e-5], np.float32)
    result = measure.compare_scores("flat", [(moved, flat)], TOLERANCE)
    assert result.error == pytest.approx(0.1, rel=1e-2)
    assert not result.passed


def test_swapped_rows_are_caught_where_the_bound_is_wider_than_the_videos_are_apart(
    pair: tuple[Reference, ...],
) -> None:
    first, second = pair[:2]
    wide = 2.0
    right = [(first.scores + 1e-5, first), (second.scores - 1e-5, second)]
    assert measure.compare_scores("half", right, wide).passed
    swapped = [(second.scores, first), (first.scores, second)]
    with pytest.raises(InconclusiveError, match=f"computed for {first.video.name} is nearer"):
        measure.compare_scores("half", swapped, wide)


def test_a_wide_bound_is_tried_on_those_that_lie_farthest_apart(
    pair: tuple[Reference, ...],
) -> None:
    near = replace(pair[0], scores=pair[0].scores + 1e-3 * np.eye(1, len(pair[0].scores))[0])
    three = (pair[0], near, pair[1])
    assert measure.farthest_apart(three, bound=1e-6) == three
    chosen = measure.farthest_apart(three, bound=10.0)
    assert len(chosen) == 2
    assert chosen[1] is pair[1]


# --- One class ----------------------------------------------------------------------------------


def one_class(pair: tuple[Reference, ...], *scores: float, logits: bool = False) -> Any:
    """References of these scores, or of a softmax over one class with these logits."""
    return tuple(
        replace(
            pair[0],
            scores=np.array([1.0 if logits else score], np.float32),
            logits=np.array([[score]], np.float32),
        )
        for score in scores
    )


def test_one_class_is_measured_against_the_spread_over_the_videos(
    pair: tuple[Reference, ...],
) -> None:
    a, b = one_class(pair, -2.0, 3.0)
    assert measure.distinguishable((a, b), TOLERANCE) == (a, b)
    require(a, b)
    off = [(a.scores + np.float32(0.001), a), (b.scores, b)]
    assert measure.compare_scores("one", off, TOLERANCE).error == pytest.approx(0.001 / 5, rel=1e-2)
    right = [(a.scores, a), (b.scores, b)]
    assert measure.compare_scores("one", right, TOLERANCE).error == 0
    swapped = [(b.scores, a), (a.scores, b)]
    assert measure.compare_scores("one", swapped, TOLERANCE).error == pytest.approx(1)


def test_one_class_under_softmax_is_told_apart_by_its_logit(pair: tuple[Reference, ...]) -> None:
    a, b = one_class(pair, -2.0, 3.0, logits=True)
    require(a, b)
    assert measure.farthest_apart((a, b), 10.0) == (a, b)
    assert measure.compare_scores("one", [(a.scores, a), (b.scores, b)], TOLERANCE).error == 0
    off = [(a.scores - np.float32(1e-6), a), (b.scores, b)]
    assert not measure.compare_scores("one", off, TOLERANCE).passed
    logits = [(a.logits + np.float32(0.01), a), (b.logits, b)]
    assert measure.compare_logits("one", logits, TOLERANCE).error == pytest.approx(0.002, rel=1e-2)


def test_softmax_over_one_class_is_saturated(tiny: Tiny, pair: tuple[Reference, ...]) -> None:
    contract = replace(tiny.contract, classes=1)
    assert measure.saturated(one_class(pair, -2.0, 3.0, logits=True), contract, TOLERANCE)


def test_one_class_that_scores_all_videos_alike_is_inconclusive(
    pair: tuple[Reference, ...],
) -> None:
    """A bound of 1e-4 of what lies between 0.5 and 0.501 is the rounding of float32."""
    for logits in (False, True):
        with pytest.raises(InconclusiveError, match="differ by less than 1%"):
            require(*one_class(pair, 0.5, 0.501, logits=logits))


# --- Saturated scores ---------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["config", "sigmoid"])
def test_scores_are_saturated_where_logits_may_be_off_by_much_and_none_shows_it(
    tiny: Tiny, pair: tuple[Reference, ...], scores: Any
) -> None:
    contract = replace(tiny.contract, scores=scores)
    rows = [run_mmaction(tiny.model, tiny.preprocessing, video, scores) for video in VIDEOS]
    wide = deepcopy(tiny.model)
    with torch.no_grad():
        wide.cls_head.fc_cls.weight *= 1000
    confident = [run_mmaction(wide, tiny.preprocessing, video, scores) for video in VIDEOS]
    assert not measure.saturated(tuple(rows), contract, TOLERANCE)
    assert measure.saturated(tuple(confident), contract, TOLERANCE)
    # one that is not saturated tells
    assert not measure.saturated((confident[0], rows[1]), contract, TOLERANCE)
    logits = replace(contract, average="score")
    assert measure.saturated(tuple(confident), logits, TOLERANCE) == (scores == "sigmoid")
    # a wide bound calls more of them so
    assert measure.saturated(tuple(confident), contract, 0.15)
    own = tuple(replace(row, logits=None) for row in confident)
    assert not measure.saturated(own, contract, TOLERANCE)
