"""Tells a listener which step of an export runs, and keeps what the finished ones came to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from action_export.types import OnStep, StepEvent


class Step:
    """A step that runs; the block sets `result`, a few words for the end table."""

    def __init__(self) -> None:
        self.result = ""


class Steps:
    """`with steps("read config") as step:` announces a step and, if it succeeds, its end."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._finished: list[StepEvent] = []
        self._running = ""

    @property
    def finished(self) -> tuple[StepEvent, ...]:
        return tuple(self._finished)

    def progress(self, phase: str, share: float) -> None:
        """Tells what the step that runs is at; `share` is 0 to 1."""
        self._on_step(StepEvent(step=self._running, phase=f"{phase}, {share:.0%}"))

    @contextmanager
    def __call__(self, name: str) -> Iterator[Step]:
        self._running = name
        self._on_step(StepEvent(step=name))
        started = time.perf_counter()
        step = Step()
        yield step
        event = StepEvent(step=name, result=step.result, seconds=time.perf_counter() - started)
        self._finished.append(event)
        self._on_step(event)
