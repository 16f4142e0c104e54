"""Each thing that a soak must not find fails it, and is on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from soak import results
from soak.results import MORE_FILES, MORE_MIB, Results, page, violations
from soak.server import Death, Footprint

DOCS = Path(__file__).parents[2] / "docs"
SMALL = {"tritonserver": Footprint(rss_mib=100, files=50)}
GOOD = Results(
    seconds=60,
    callers=4,
    seed=0,
    steady={"right": {"": 100}},
    damaged={"typed": {"VideoError": 30}, "answered": {"": 10}},
    malformed={"typed": {"INVALID_ARGUMENT": 90}, "answered": {"": 5}},
    killed={"right": {"": 50}, "typed": {"ServerUnavailableError": 40}},
    deaths=(Death(victim="tritonserver", noticed=True, seconds=4.0),),
    restarts_unasked=0,
    restarts=1,
    before=SMALL,
    after=SMALL,
    after_kills=SMALL,
)
BIG = {"tritonserver": Footprint(rss_mib=101 + MORE_MIB, files=50)}
MANY = {"tritonserver": Footprint(rss_mib=100, files=51 + MORE_FILES)}
UNNOTICED = (Death(victim="example_preprocess", noticed=False, seconds=90.0),)


def test_nothing_is_found_where_nothing_is() -> None:
    assert list(violations(GOOD)) == []
    assert results.NOTHING in page(GOOD)
    assert "| tritonserver | 1 | 1 | 4.0 |" in page(GOOD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steady": {"right": {"": 9}, "wrong": {"off by 0.3": 1}}}, "1 wrong (off by 0.3)"),
        ({"killed": {"right": {"": 9}, "wrong": {"off by 0.3": 1}}}, "1 wrong (off by 0.3)"),
        ({"damaged": {"wrong": {"not the same twice": 2}}}, "2 wrong (not the same twice)"),
        ({"damaged": {"untyped": {"IndexError: x": 1}}}, "1 untyped (IndexError: x)"),
        ({"malformed": {"hang": {"31 s": 1}}}, "1 hang (31 s)"),
        (
            {"steady": {"right": {"": 9}, "typed": {"ServerError": 1}}},
            "ServerError, though nothing",
        ),
        ({"killed": {"typed": {"ServerUnavailableError": 9}}}, "no right answer at all"),
        ({"deaths": UNNOTICED}, "the death of example_preprocess was not noticed"),
        ({"restarts_unasked": 1, "restarts": 2}, "1 deaths that nobody asked for"),
        ({"restarts": 0}, "0 restarts of 1 deaths"),
        ({"after": BIG}, f"tritonserver grew from 100 to {101 + MORE_MIB} MiB"),
        ({"after_kills": BIG}, "MiB after the kills"),
        ({"after": MANY}, f"tritonserver has {51 + MORE_FILES} open descriptors, and had 50"),
        ({"after": {}}, "tritonserver is not there any more"),
    ],
)
def test_what_must_not_be_is_told(change: dict[str, Any], words: str) -> None:
    found = list(violations(replace(GOOD, **change)))
    assert len(found) == 1
    assert words in found[0]
    assert f"- {found[0]}" in page(replace(GOOD, **change))


def test_results_are_read_as_they_were_written() -> None:
    assert Results.from_json(GOOD.to_json()) == GOOD


def test_the_page_tells_of_its_results() -> None:
    written = Results.from_json((DOCS / "reliability.json").read_text("utf-8"))
    assert (DOCS / "reliability.md").read_text("utf-8") == page(written)
    assert list(violations(written)) == []
