"""One measurement: makes what a plan needs, runs its sections while there is time, and judges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import machine, sections
from benchmarks.driver import ContenderError
from benchmarks.plans import Group, Plan
from benchmarks.prepare import prepare
from benchmarks.results import Results, Series
from benchmarks.targets import FULL, all_targets, section_title
from benchmarks.workspace import Workspace

# Estimates, on two cores: of each contender to get ready; of torch's export and ours; of one answer
# of a slow contender.
_START_S = 2.0
_EXPORTS_S = 20.0
_SLOW_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """seconds: about what it takes."""

    title: str
    seconds: float
    measure: Callable[[], list[Series]]


def run(
    plan: Plan,
    space: Workspace,
    real_videos: Sequence[Path],
    *,
    quick: bool,
    say: Callable[[str], None],
) -> Results:
    """say: takes a line of progress at the beginning of each section.

    Raises ContenderError where a model cannot be made.
    """
    began = time.perf_counter()
    space = replace(space, ends=began + plan.limit_s)
    space.leave_out()
    say("videos, weights and repositories")
    prepare(plan, space, real_videos)
    series: list[Series] = []
    for section in sections_of(plan, space):
        if section.seconds > space.left_s:
            space.skipped[section.title] = (
                f"no time was left of {plan.limit_s:g} s: it takes about {section.seconds:.0f} s"
            )
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
        targets=all_targets(
            series, space.skipped, [group.case.name for group in plan.groups if group.requests]
        ),
        skipped=tuple(space.skipped.items()),
    )


def sections_of(plan: Plan, space: Workspace) -> Iterator[Section]:
    """In the order of the plan's groups; what a model is also needed for follows its group."""
    for group in plan.groups:
        yield Section(
            title=group.case.title,
            seconds=_seconds_of(group),
            measure=partial(sections.group, group, space),
        )
        if group.case.name == "tsm-one":
            yield Section(
                title=section_title("batching", group.case.name),
                seconds=2 * _START_S + plan.batching.seconds,
                measure=partial(sections.batching, plan.batching, space),
            )
        if group.case.name == FULL:
            yield from _of_full(plan, space)


def _of_full(plan: Plan, space: Workspace) -> Iterator[Section]:
    engine = space.engines(("openvino",))[0]
    for case in plan.preprocess:
        budget = plan.preprocess_budget
        yield Section(
            title=section_title("preprocess", case),
            seconds=2 * _START_S + 2 * budget.seconds,
            measure=partial(sections.preprocess, case, engine, budget, space),
        )
    yield Section(
        title=section_title("wire", FULL),
        seconds=2 * _START_S,
        measure=partial(sections.wire, space),
    )
    for case, rounds in plan.exports.items():
        yield Section(
            title=section_title("export", case),
            seconds=rounds * (2 * _START_S + _EXPORTS_S),
            measure=partial(sections.export, case, rounds, space),
        )


def _seconds_of(group: Group) -> float:
    """About what its contenders take to start, and its budgets."""
    contenders = 2 * len(group.engines) + len(group.others)
    latencies = group.budget.seconds * (1 + (len(group.videos) - 1) / 3)
    slow = len(group.others) * _SLOW_S if group.slow else 0.0
    return contenders * _START_S + latencies + slow + group.loops.seconds
