"""The judge of the soak tells wrong from right, typed from untyped, and late from answered."""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
import pytest
from action_client import ActionClientError, DeadlineError
from action_client import VideoError as ClientVideoError

from soak.judge import KINDS, Expected, Outcome, Tally, outcome_of, total

RIGHT = np.array([0.1, 0.2, 0.7], np.float32)
EXPECTED = Expected(scores=RIGHT, bound=1e-3)


def raising(exc: Exception) -> Any:
    def call() -> None:
        raise exc

    return call


class Status(grpc.RpcError):
    def __init__(self, status: grpc.StatusCode) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return "what happened"


@pytest.mark.parametrize(
    "scores",
    [
        RIGHT[::-1],
        RIGHT + np.array([0, 0, 7e-4], np.float32),
        RIGHT * np.nan,
        RIGHT[:2],
        RIGHT[None],
    ],
)
def test_a_wrong_answer_is_wrong(scores: Any) -> None:
    assert EXPECTED.judge(scores).kind == "wrong"


def test_an_answer_within_the_bound_of_the_spread_is_right() -> None:
    assert EXPECTED.judge(RIGHT).kind == "right"
    assert EXPECTED.judge(RIGHT + np.array([0, 0, 5e-4], np.float32)).kind == "right"


def of(call: Any, *, limit_s: float = 60) -> Outcome:
    return outcome_of(call, EXPECTED.judge, limit_s=limit_s)


def test_errors_of_the_client_are_typed_and_others_are_not() -> None:
    assert of(lambda: RIGHT) == Outcome("right")
    assert of(raising(ClientVideoError("x"))) == Outcome("typed", "VideoError")
    assert issubclass(ClientVideoError, ActionClientError)
    assert of(raising(IndexError("x"))) == Outcome("untyped", "IndexError: x")


def test_a_client_that_waited_in_vain_is_a_hang_as_the_status_is() -> None:
    assert of(raising(DeadlineError("x"))) == Outcome("hang", "DeadlineError")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", "typed"),
        ("NOT_FOUND", "typed"),
        ("INTERNAL", "untyped"),
        ("UNKNOWN", "untyped"),
        ("UNAVAILABLE", "untyped"),
        ("DEADLINE_EXCEEDED", "hang"),
    ],
)
def test_a_status_that_tells_what_is_wrong_with_the_request_is_typed(
    status: str, kind: str
) -> None:
    assert of(raising(Status(grpc.StatusCode[status]))).kind == kind


def test_what_comes_late_is_a_hang_be_it_right() -> None:
    def late() -> Any:
        time.sleep(0.02)
        return RIGHT

    assert of(late, limit_s=0.01).kind == "hang"


def test_a_tally_counts_by_kind_and_name() -> None:
    tally = Tally()
    for outcome in (
        Outcome("right"),
        Outcome("typed", "A"),
        Outcome("typed", "A"),
        Outcome("hang"),
    ):
        tally.add(outcome)
    assert tally.counts() == {"right": {"": 1}, "typed": {"A": 2}, "hang": {"": 1}}
    assert tally.of("typed", "hang") == 3
    assert total(tally.counts()) == tally.of(*KINDS) == 4
    assert total(tally.counts(), ["typed"]) == 2
