"""What came of each call, and how many came to what."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import grpc
import numpy as np
from action_client import ActionClientError, DeadlineError
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Kind = Literal["right", "answered", "typed", "wrong", "untyped", "hang"]
KINDS: tuple[Kind, ...] = get_args(Kind)

TYPED = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"})
"""Statuses of gRPC that tell a caller what is wrong with the request."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """name: of an error its class or status, of a wrong answer what was wrong."""

    kind: Kind
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """scores: mmaction2's, [classes]. bound: of the difference, times their spread."""

    scores: Scores
    bound: float

    def judge(self, scores: Scores) -> Outcome:
        if scores.shape != self.scores.shape or not np.isfinite(scores).all():
            return Outcome("wrong", f"shape {scores.shape}")
        off = float(np.abs(scores - self.scores).max() / np.ptp(self.scores))
        return Outcome("right") if off <= self.bound else Outcome("wrong", f"off by {off:.2g}")


def outcome_of(
    call: Callable[[], Any], judge: Callable[[Any], Outcome], *, limit_s: float
) -> Outcome:
    """limit_s: after which an answer or an error is a hang all the same."""
    started = time.monotonic()
    try:
        outcome = judge(call())
    except DeadlineError as exc:
        outcome = Outcome("hang", type(exc).__name__)
    except ActionClientError as exc:
        outcome = Outcome("typed", type(exc).__name__)
    except grpc.RpcError as exc:
        outcome = _of_status(exc.code().name, exc.details() or "")
    except Exception as exc:
        outcome = Outcome("untyped", f"{type(exc).__name__}: {str(exc)[:120]}")
    took_s = time.monotonic() - started
    return Outcome("hang", f"{took_s:.0f} s") if took_s > limit_s else outcome


def _of_status(status: str, details: str) -> Outcome:
    if status == "DEADLINE_EXCEEDED":
        return Outcome("hang", status)
    if status in TYPED:
        return Outcome("typed", status)
    return Outcome("untyped", f"{status}: {details[:120]}")


class Tally:
    """Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Outcome] = Counter()

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self._counts[outcome] += 1

    def of(self, *kinds: Kind) -> int:
        with self._lock:
            return sum(n for outcome, n in self._counts.items() if outcome.kind in kinds)

    def counts(self) -> dict[str, dict[str, int]]:
        """For each kind that there was, how many by name."""
        with self._lock:
            found: dict[str, dict[str, int]] = {}
            for outcome, number in sorted(
                self._counts.items(), key=lambda item: (item[0].kind, item[0].name)
            ):
                found.setdefault(outcome.kind, {})[outcome.name] = number
            return found


def total(counts: Mapping[str, Mapping[str, int]], kinds: Iterable[str] | None = None) -> int:
    """Of what Tally.counts gave; None: of all kinds."""
    return sum(sum(counts.get(kind, {}).values()) for kind in (counts if kinds is None else kinds))
