"""From the replies of a group's rounds to its series: answers that differ are wrong, not timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.driver import Reply
from benchmarks.results import Series

# Of the scores, as a share of their spread over the classes: float32 added in another order.
FP32_BOUND = 1e-3
BF16_BOUND = 40 * 2**-8  # as that of int8, whose rounding error is the same

Replies = Mapping[str, Sequence[Reply]]
"""Of each round, by contender."""
Facts = Mapping[str, Mapping[str, Any]]


def series_of(like: Series, replies: Replies, facts: Facts | None = None) -> list[Series]:
    """One for each contender. like: what they have in common; facts: further ones by contender."""
    return [_series(like, key, replies, (facts or {}).get(key, {})) for key in replies]


def _series(like: Series, key: str, replies: Replies, facts: Mapping[str, Any]) -> Series:
    found = replies[key]
    error = error_of(found) or disagreement(key, replies)
    if error:
        return replace(like, contender=key, error=error)
    parts = {
        name: tuple(reply["parts"].get(name, 0.0) for reply in found)
        for name in found[0].get("parts", {})
    }
    last = found[-1]
    return replace(
        like,
        contender=key,
        values=tuple(reply["seconds"] for reply in found),
        parts=parts,
        facts={**like.facts, "bytes": last.get("bytes", 0), "top1": last.get("top1"), **facts},
    )


def loop_series(like: Series, key: str, callers: int, found: Sequence[Reply]) -> Series:
    """Of closed loops: requests per second of each round, and the latency of every request."""
    error = error_of(found)
    if error:
        return replace(like, contender=key, callers=callers, error=error)
    return replace(
        like,
        contender=key,
        callers=callers,
        values=tuple(reply["requests"] / reply["seconds"] for reply in found),
        facts={"latencies": [seconds for reply in found for seconds in reply["each"]]},
    )


def error_of(found: Sequence[Reply]) -> str:
    return next((str(reply["error"]) for reply in found if "error" in reply), "")


def disagreement(key: str, replies: Replies) -> str:
    """How a contender's answer differs from mmaction2's, or from the first that answered; or "".

    Of scores as a share of their spread over the classes; where there are none, the best class.
    """
    reference = _answer(replies.get("mmaction2", ())) or next(
        (answer for answers in replies.values() if (answer := _answer(answers))), None
    )
    mine = replies[key][-1]
    if reference is None or mine.get("top1") is None:
        return ""
    if mine.get("scores"):
        wanted, got = np.array(reference["scores"]), np.array(mine["scores"])
        off = float(np.abs(wanted - got).max() / np.ptp(wanted))
        bound = _bound(key)
        return "" if off <= bound else f"wrong: off by {off:.2g} of the spread, {bound:.2g} allowed"
    same = mine["top1"] == reference["top1"]
    return "" if same else f"wrong: class {mine['top1']}, not {reference['top1']}"


def _answer(answers: Sequence[Reply]) -> Reply | None:
    return answers[-1] if answers and answers[-1].get("scores") else None


def _bound(key: str) -> float:
    from action_export.precision import BOUNDS

    bounds: Mapping[Any, float] = BOUNDS
    return bounds.get("bf16", BF16_BOUND) if key.endswith("bf16") else FP32_BOUND
