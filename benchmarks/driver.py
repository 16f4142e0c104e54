"""Starts contenders, each in a process of its own, and lets them answer in turn."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processes

ROOT = Path(__file__).parent.parent
START_S = 300.0
ANSWER_S = 600.0
_STOP_S = 40.0  # a tritonserver may take 30 to stop

Reply = dict[str, Any]


class ContenderError(Exception):
    """A contender that did not start, did not answer, or answered with an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How to start a contender. command: its argv, which ends with its arguments as JSON."""

    name: str
    command: tuple[str, ...]

    @classmethod
    def ours(cls, name: str, kind: str, **arguments: Any) -> Start:
        """One of contenders.py, of this `kind`."""
        argv = (sys.executable, "-m", "benchmarks.contender", kind)
        return cls(name=name, command=(*argv, json.dumps(arguments)))


@dataclass(slots=True)
class Process:
    """A running contender. idle: seconds on the CPU, and of the clock, while it had no question."""

    name: str
    child: subprocess.Popen[str]
    log: Path
    idle: list[tuple[float, float]] = field(default_factory=list)
    _left: tuple[float, float] | None = None

    def wait_ready(self) -> None:
        if not self._read(START_S).get("ready"):
            raise ContenderError(f"{self.name} did not say that it is ready")

    def ask(self, question: str | Mapping[str, Any], timeout_s: float = ANSWER_S) -> Reply:
        """Raises ContenderError."""
        self._arrive()
        line = question if isinstance(question, str) else json.dumps(question)
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        except OSError as exc:
            raise ContenderError(f"{self.name} has ended: {self._last_words()}") from exc
        reply = self._read(timeout_s)
        self._leave()
        if "error" in reply:
            raise ContenderError(f"{self.name}: {reply['error']}")
        return reply

    def memory(self) -> processes.Memory:
        return processes.memory(self.child.pid)

    @property
    def idle_cpu(self) -> float:
        """Share of one core that it and its server take while others run."""
        clock = sum(clock for _, clock in self.idle)
        return sum(cpu for cpu, _ in self.idle) / clock if clock else 0.0

    def stop(self) -> None:
        assert self.child.stdin is not None
        try:
            self.child.stdin.close()
            self.child.wait(_STOP_S)
        except (OSError, subprocess.TimeoutExpired):
            self.child.kill()
            self.child.wait()

    def _arrive(self) -> None:
        if self._left is not None:
            cpu, clock = self._left
            self.idle.append(
                (processes.cpu_seconds(self.child.pid) - cpu, time.perf_counter() - clock)
            )

    def _leave(self) -> None:
        self._left = (processes.cpu_seconds(self.child.pid), time.perf_counter())

    def _read(self, timeout_s: float) -> Reply:
        assert self.child.stdout is not None
        # there is never more than one line on its way, so nothing waits in Python's buffer
        if not select.select([self.child.stdout], [], [], timeout_s)[0]:
            raise ContenderError(f"{self.name} said nothing for {timeout_s:g} s")
        line = self.child.stdout.readline()
        if not line:
            raise ContenderError(f"{self.name} has ended: {self._last_words()}")
        reply: Reply = json.loads(line)
        return reply

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line]
        return " | ".join(lines[-3:]) or "without a word"


def environment() -> dict[str, str]:
    """Where contenders find this package and the test weights."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


@contextmanager
def started(
    starts: Sequence[Start], logs: Path, failed: dict[str, str] | None = None
) -> Iterator[dict[str, Process]]:
    """All of them, ready, by name.

    failed: takes the reasons of those that do not get ready, by name; without it the first of them
    raises ContenderError.
    """
    with ExitStack() as stack:
        running: dict[str, Process] = {}
        for start in starts:
            log = logs / f"{start.name.replace(' ', '-')}.log"
            file = stack.enter_context(log.open("w"))
            child = subprocess.Popen(
                start.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
                env=environment(),
            )
            running[start.name] = Process(name=start.name, child=child, log=log)
            stack.callback(running[start.name].stop)
        for name, process in list(running.items()):
            try:
                process.wait_ready()
            except ContenderError as exc:
                if failed is None:
                    raise
                failed[name] = str(exc)
                del running[name]
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """One thing that is measured: a question to a process. key: its name in the results.

    rounds: of what is slow and no ratio needs, so many at most, without a warm-up; None for all.
    """

    key: str
    process: Process
    question: str | Mapping[str, Any]
    rounds: int | None = None

    def takes_part(self, counted: int) -> bool:
        """counted: the number of the round, from 0; negative while it warms up."""
        return self.rounds is None or 0 <= counted < self.rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Rounds by time: as many as fit in `seconds`, from `least` to `most`. warm: uncounted ones."""

    seconds: float
    least: int = 3
    most: int = 25
    warm: int = 1


def alternate(
    runners: Sequence[Runner], budget: Budget, on_round: Callable[[int], None] = lambda _: None
) -> dict[str, list[Reply]]:
    """Every runner once in each round, A B C A B C; the replies by key, one for each round.

    A runner that fails is left out of the rounds that follow, and its last reply is the error.
    """
    replies: dict[str, list[Reply]] = {runner.key: [] for runner in runners}
    alive = list(runners)
    began = time.perf_counter()
    rounds = 0
    while rounds < budget.warm + budget.most and alive:
        if rounds == budget.warm:
            began = time.perf_counter()
        counted = rounds - budget.warm
        if counted >= budget.least:
            spent = time.perf_counter() - began
            if spent + spent / counted > budget.seconds:
                break
        for runner in [runner for runner in alive if runner.takes_part(counted)]:
            try:
                reply = runner.process.ask(runner.question)
            except ContenderError as exc:
                replies[runner.key] = [{"error": str(exc)}]
                alive.remove(runner)
                continue
            if rounds >= budget.warm:
                replies[runner.key].append(reply)
        rounds += 1
        on_round(rounds)
    return replies
