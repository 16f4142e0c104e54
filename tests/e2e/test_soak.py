"""A slice of the soak: nothing wrong, hung, untyped or unnoticed while a model is killed."""

from __future__ import annotations

from pathlib import Path

from soak.results import violations
from soak.run import RAW, Plan, publish, soak

SLICE = Plan(seconds=0, callers=2, damaged=8, malformed=60, victims=(f"{RAW}_preprocess",))


def test_callers_get_right_answers_or_typed_errors_beside_all_that_goes_wrong(
    tmp_path: Path,
) -> None:
    answers = publish(tmp_path / "repo")
    results = soak(tmp_path / "repo", answers, SLICE, print)
    assert list(violations(results)) == []
    assert sum(results.malformed["typed"].values()) > 30
    assert results.damaged["typed"]
    [death] = results.deaths
    assert death.noticed
