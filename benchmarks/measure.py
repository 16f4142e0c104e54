"""One measurement: makes what a plan needs, runs its sections while there is time, and judges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import machine, sections
from benchmarks.driver import ContenderError
from benchmarks.plans import Plan
from benchmarks.prepare import prepare
from benchmarks.results import Results, Series
from benchmarks.targets import FULL, all_targets
from benchmarks.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    title: str
    measure: Callable[[], list[Series]]


def run(
    plan: Plan,
    space: Workspace,
    real_videos: Sequence[Path],
    *,
    quick: bool,
    say: Callable[[str], None],
) -> Results:
    """say: takes a line of progress at the beginning of each section."""
    began = time.perf_counter()
    space.leave_out()
    say("videos, weights and repositories")
    prepare(plan, space, real_videos)
    series: list[Series] = []
    for section in sections_of(plan, space):
        if time.perf_counter() - began > plan.limit_s:
            space.skipped[section.title] = f"no time was left of {plan.limit_s:g} s"
            continue
        say(section.title)
        # a section that fails costs its own figures
        try:
            series += section.measure()
        except ContenderError as exc:
            space.skipped[section.title] = str(exc)
    return Results(
        quick=quick,
        seconds=time.perf_counter() - began,
        machine=machine.describe(),
        versions=machine.versions(),
        series=tuple(series),
        targets=all_targets(series, space.skipped),
        skipped=tuple(space.skipped.items()),
    )


def sections_of(plan: Plan, space: Workspace) -> Iterator[Section]:
    """In the order of the plan's groups; what a model is also needed for follows its group."""
    for group in plan.groups:
        yield Section(title=group.case.title, measure=partial(sections.group, group, space))
        if group.case.name == "tsm-one":
            yield Section(
                title="dynamic batching", measure=partial(sections.batching, plan.batching, space)
            )
        if group.case.name == FULL:
            yield from _of_full(plan, space)


def _of_full(plan: Plan, space: Workspace) -> Iterator[Section]:
    engine = space.engines(("openvino",))[0]
    for case in plan.preprocess:
        budget = plan.preprocess_budget
        yield Section(
            title=f"preprocess step of {case}",
            measure=partial(sections.preprocess, case, engine, budget, space),
        )
    yield Section(title="bytes on the wire", measure=partial(sections.wire, space))
    for case, rounds in plan.exports.items():
        yield Section(
            title=f"export of {case}", measure=partial(sections.export, case, rounds, space)
        )
