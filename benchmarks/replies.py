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

# A race in mmdeploy's SDK makes some of its answers wrong (mmdeploy.md). The work of a call is the
# same in either case, so it is timed, and told with how many were wrong.
FLAWED = ("mmdeploy",)

Replies = Mapping[str, Sequence[Reply]]
"""Of each round, by contender."""
Facts = Mapping[str, Mapping[str, Any]]


def series_of(like: Series, replies: Replies, facts: Facts | None = None) -> list[Series]:
    """One for each contender. like: what they have in common; facts: further ones by contender."""
    return [_series(like, key, replies, (facts or {}).get(key, {})) for key in replies]


def _series(like: Series, key: str, replies: Replies, facts: Mapping[str, Any]) -> Series:
    found = replies[key]
    wrong = wrong_answers(key, replies)
    error = error_of(found) or ("" if key in FLAWED else next(iter(wrong), ""))
    if error:
        return replace(like, contender=key, error=error)
    parts = {
        name: tuple(reply["parts"].get(name, 0.0) for reply in found)
        for name in found[0].get("parts", {})
    }
    names = ("bytes", "top1", "crashes")
    told: dict[str, Any] = {name: found[-1][name] for name in names if name in found[-1]}
    if wrong:
        told["wrong"] = f"{len(wrong)} of {len(found)} answers {wrong[0]}"
    return replace(
        like,
        contender=key,
        values=tuple(reply["seconds"] for reply in found),
        parts=parts,
        facts={**like.facts, **told, **facts},
    )


def loop_series(
    like: Series, key: str, callers: int, found: Sequence[Reply], reference: Reply | None
) -> Series:
    """Of closed loops: requests per second of each round, and the latency of every request.

    reference: what every answer is compared with, by the least and the largest score of each class.
    """
    error = error_of(found) or next(iter(_wrong_loops(key, found, reference)), "")
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


def wrong_answers(key: str, replies: Replies) -> list[str]:
    """How each answer that differs from mmaction2's does, or from that of the first that answered.

    Of scores as a share of their spread over the classes; where there are none, the best class.
    """
    reference = reference_of(replies)
    if reference is None:
        return []
    differences = (_difference(reply, reference, _bound(key)) for reply in replies[key])
    return [f"wrong: {difference}" for difference in differences if difference]


def reference_of(replies: Replies) -> Reply | None:
    """The answer of mmaction2, or of the first that answered."""
    return _answer(replies.get("mmaction2", ())) or next(
        (answer for answers in replies.values() if (answer := _answer(answers))), None
    )


def _wrong_loops(key: str, found: Sequence[Reply], reference: Reply | None) -> list[str]:
    if reference is None:
        return []
    ends = (reply[end] for reply in found for end in ("lowest", "highest"))
    differences = (_off(scores, reference["scores"], _bound(key)) for scores in ends)
    return [f"wrong: {difference}" for difference in differences if difference]


def _difference(mine: Reply, reference: Reply, bound: float) -> str:
    if mine.get("top1") is None:
        return ""
    if mine.get("scores"):
        return _off(mine["scores"], reference["scores"], bound)
    same = mine["top1"] == reference["top1"]
    return "" if same else f"class {mine['top1']}, not {reference['top1']}"


def _off(scores: Sequence[float], reference: Sequence[float], bound: float) -> str:
    if len(scores) != len(reference):
        return f"{len(scores)} scores, not {len(reference)}"
    wanted, got = np.array(reference), np.array(scores)
    off = float(np.abs(wanted - got).max() / np.ptp(wanted))
    # NaN is not within the bound
    return "" if off <= bound else f"off by {off:.2g} of the spread, {bound:.2g} allowed"


def _answer(answers: Sequence[Reply]) -> Reply | None:
    return answers[-1] if answers and answers[-1].get("scores") else None


def _bound(key: str) -> float:
    from action_export.precision import BOUNDS

    return BOUNDS["bf16"] if key.endswith("bf16") else FP32_BOUND
