"""How far scores and logits lie from mmaction2's, and whether that could tell a wrong graph.

A difference is measured against the spread of the reference over the classes, because softmax over
random logits can make any absolute difference small. Of one class the spread is that over the
videos which are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from action_runtime.spec import Contract
from numpy.typing import NDArray

from action_export.errors import InconclusiveError
from action_export.reference import Reference
from action_export.types import Check

# How many times the bound two references must lie apart.
MARGIN = 10.0

# Of one class, videos that lie nearer together than this share of their scores have no spread: the
# bound, 1e-4 of it, would be the rounding of float32.
_ALIKE = 0.01

Rows = Sequence[tuple[NDArray[np.float32], Reference]]
"""What was computed of each video, and the reference that it must equal."""


def distinguishable(references: tuple[Reference, ...], tolerance: float) -> tuple[Reference, ...]:
    """The references that mmaction2 tells apart, pairwise, by ten times the bound or more."""
    told = tuple(map(_telling, references))
    among = [reference.scores for reference in told]
    kept: list[int] = []
    for number, scores in enumerate(among):
        if _spread(scores, among) > 0 and all(
            difference(scores, among[other], among) > MARGIN * tolerance for other in kept
        ):
            kept.append(number)
    return tuple(references[number] for number in kept)


def farthest_apart(references: tuple[Reference, ...], bound: float) -> tuple[Reference, ...]:
    """Those that tell most under a bound that may be wider than what lies between two videos.

    Pairwise they lie more than twice the bound apart; where no two do, they are the two that lie
    farthest apart.
    """
    kept = distinguishable(references, 2 * bound / MARGIN)
    if len(kept) > 1 or len(references) < 2:
        return kept
    return max(combinations(references, 2), key=lambda pair: _apart(pair, references))


def mixed_rows(references: tuple[Reference, ...], size: int) -> list[Reference]:
    """The rows of a batch: of two videos a, a, b or a, a, b, b.

    From behind, or with rows taken from a smaller batch over and over, another video comes last.
    """
    videos = min(len(references), size)
    return [references[row * videos // size] for row in range(size)]


def require_distinguishable(references: tuple[Reference, ...], tolerance: float) -> None:
    """Raises InconclusiveError unless two references lie far enough apart for a check to fail."""
    if len(references) < 2:
        raise InconclusiveError(
            f"{len(references)} video proves nothing: a graph that mixes up rows would pass",
            hint="give two different videos or more to --videos",
        )
    if len(distinguishable(references, tolerance)) < 2:
        apart = max(_apart(pair, references) for pair in combinations(references, 2))
        by = f"by {apart:.1e} of the spread over classes"
        if len(references[0].scores) == 1:
            by = f"by less than {_ALIKE:.0%}"
        raise InconclusiveError(
            f"mmaction2 scores the {len(references)} proof videos alike (they differ {by}), so a "
            "wrong graph would pass",
            hint="is the checkpoint trained? prove on videos that it tells apart with --videos",
        )


def saturated(references: tuple[Reference, ...], contract: Contract, tolerance: float) -> bool:
    """Whether logits could be off by ten bounds, and no score would be by one.

    Of a head that scores in its own way nobody knows.
    """
    sigmoid = contract.scores == "sigmoid"
    if contract.average == "score" and not sigmoid:
        return False
    squash = _sigmoid if sigmoid else _softmax
    for reference in references:
        if reference.logits is None:
            return False
        off = squash(reference.logits * (1 + MARGIN * tolerance)).mean(axis=0)
        if difference(off, reference.scores, [row.scores for row in references]) > tolerance:
            return False
    return True


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    values: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return values


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # the same, and exp does not overflow
    values: NDArray[np.float32] = (1 + np.tanh(logits / 2)) / 2
    return values


def compare_scores(name: str, rows: Rows, tolerance: float) -> Check:
    """The worst of the rows, each the served scores and the reference that they must equal.

    Raises:
        InconclusiveError: a row is within the bound and nearer to another reference than to its
            own, as a bound of reduced precision may be wider than what lies between two videos.
    """
    among = [reference.scores for _, reference in rows]
    # numpy's max keeps a NaN wherever it stands; Python's only if it comes first
    error = float(np.max([difference(scores, own.scores, among) for scores, own in rows]))
    if error <= tolerance:
        _require_own_reference(name, rows)
    return Check(
        name=name,
        error=error,
        bound=tolerance,
        unit="of spread",
        detail=f"{len(rows)} rows",
        top1=_agreement(rows, 1),
        top5=_agreement(rows, 5),
    )


def compare_logits(name: str, rows: Rows, tolerance: float) -> Check:
    """The worst of the rows, each the logits of a video's views and the reference of those.

    Where softmax or a sigmoid saturates, scores stay what they are, whatever becomes of the logits.
    """
    among = [reference.logits for _, reference in rows if reference.logits is not None]
    errors = [difference(logits, own, among) for (logits, _), own in zip(rows, among, strict=True)]
    return Check(
        name=name,
        error=float(np.max(errors)),
        bound=tolerance,
        unit="of spread",
        detail=f"{len(rows)} rows",
    )


def difference(
    given: NDArray[Any], expected: NDArray[Any], among: Sequence[NDArray[Any]] = ()
) -> float:
    """max |given - expected| over the spread of what is expected, of shape [..., classes].

    among: what is expected of all videos, in whose spread it is measured where there is one class.
    """
    if given.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(given - expected).max())
    spread = _spread(expected, among)
    return largest / spread if spread else (float("inf") if largest else 0.0)


def _spread(values: NDArray[Any], among: Sequence[NDArray[Any]]) -> float:
    if values.shape[-1] > 1:
        return float(np.ptp(values))
    every = np.concatenate([values.ravel(), *map(np.ravel, among)])
    spread = float(np.ptp(every))
    # a NaN has none
    return spread if spread > _ALIKE * np.abs(every).max() else 0.0


def _telling(reference: Reference) -> Reference:
    """Softmax over one class is always 1; there the logit tells videos apart."""
    if reference.logits is None or reference.scores.tolist() != [1.0]:
        return reference
    return replace(reference, scores=reference.logits.mean(axis=0))


def _apart(pair: tuple[Reference, Reference], among: tuple[Reference, ...]) -> float:
    """The first in the spread of the second."""
    one, other = map(_telling, pair)
    return difference(one.scores, other.scores, [_telling(each).scores for each in among])


def _require_own_reference(name: str, rows: Rows) -> None:
    among = [reference.scores for _, reference in rows]
    for scores, own in rows:
        for _, other in rows:
            if difference(scores, other.scores, among) < difference(scores, own.scores, among):
                apart = difference(other.scores, own.scores, among)
                raise InconclusiveError(
                    f"{name}: what was computed for {own.video.name} is nearer to mmaction2's "
                    f"scores of {other.video.name}, which lie {apart:.1e} of the spread away: rows "
                    "that are mixed up would look the same",
                    hint="nothing was published; prove on videos that mmaction2 tells further "
                    "apart with --videos",
                )


def _agreement(rows: Rows, count: int) -> float:
    """Share of the reference's `count` best classes that are among the served ones."""
    shares = [
        len(np.intersect1d(scores.argsort()[-count:], reference.scores.argsort()[-count:]))
        / min(count, len(reference.scores))
        for scores, reference in rows
    ]
    return float(np.mean(shares))
