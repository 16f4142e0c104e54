"""Starts contenders, each in a process of its own, and lets them answer in turn."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processes

ROOT = Path(__file__).parent.parent
START_S = 300.0
ANSWER_S = 600.0
# After an answer the threads of a runtime spin for a while yet, on the cores of the next contender.
_REST_S = 0.1
_STOP_S = 40.0  # a tritonserver may take 30 to stop
_GRACE_S = 5.0  # to stop in, where the time of the measurement is over

Reply = dict[str, Any]


class ContenderError(Exception):
    """A contender that did not start, did not answer, or answered with an error."""


class OutOfTimeError(ContenderError):
    """The measurement's time was over before the answer was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How to start a contender. command: its argv, which ends with its arguments as JSON.

    variables: of its environment, beside ours.
    """

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def ours(cls, name: str, kind: str, **arguments: Any) -> Start:
        """One of contenders.py, of this `kind`."""
        argv = (sys.executable, "-m", "benchmarks.contender", kind)
        return cls(name=name, command=(*argv, json.dumps(arguments)))


@dataclass(slots=True)
class Process:
    """A running contender. idle: seconds on the CPU, and of the clock, while it had no question.

    ends: of `time.perf_counter`; until then an answer is waited for at most.
    """

    name: str
    child: subprocess.Popen[str]
    log: Path
    ends: float = math.inf
    idle: list[tuple[float, float]] = field(default_factory=list)
    _left: tuple[float, float] | None = None

    def wait_ready(self) -> None:
        if not self._read(START_S).get("ready"):
            raise self._error(f"{self.name} did not say that it is ready")

    def ask(self, question: str | Mapping[str, Any], timeout_s: float = ANSWER_S) -> Reply:
        """Raises ContenderError; one that has not answered in time is killed."""
        self._arrive()
        line = question if isinstance(question, str) else json.dumps(question)
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        except OSError as exc:
            raise self._error(f"{self.name} has ended: {self._last_words()}") from exc
        reply = self._read(timeout_s)
        self._leave()
        if "error" in reply:
            raise self._error(f"{self.name}: {reply['error']}")
        return reply

    def memory(self) -> processes.Memory:
        return processes.memory(self.child.pid)

    @property
    def idle_cpu(self) -> float:
        """Share of one core that it and its server take while others run."""
        clock = sum(clock for _, clock in self.idle)
        return sum(cpu for cpu, _ in self.idle) / clock if clock else 0.0

    def let_go(self) -> None:
        """It ends by itself."""
        assert self.child.stdin is not None
        with suppress(OSError):
            self.child.stdin.close()

    def stop(self) -> None:
        self.let_go()
        left = self.ends + _GRACE_S - time.perf_counter()
        try:
            self.child.wait(max(0.0, min(_STOP_S, left)))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """It, and whatever computes for it, at once."""
        if self.child.poll() is not None:
            return
        # Those between have to live on: a server's supervisor removes what the server leaves.
        computing = [pid for pid in processes.tree(self.child.pid) if len(processes.tree(pid)) == 1]
        for pid in {self.child.pid, *computing}:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
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
        left = self.ends - time.perf_counter()
        # there is never more than one line on its way, so nothing waits in Python's buffer
        if not select.select([self.child.stdout], [], [], max(0.0, min(timeout_s, left)))[0]:
            # it would compute in the rounds of others, and its answer be taken for the next one
            self.kill()
            if left < timeout_s:
                raise OutOfTimeError(f"{self.name} had not answered when the time was over")
            raise self._error(f"{self.name} said nothing for {timeout_s:g} s")
        line = self.child.stdout.readline()
        if not line:
            raise self._error(f"{self.name} has ended: {self._last_words()}")
        reply: Reply = json.loads(line)
        return reply

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line]
        return " | ".join(lines[-3:]) or "without a word"

    def _error(self, text: str) -> ContenderError:
        """Without the temporary folder, whose name tells nobody anything."""
        return ContenderError(text.replace(str(self.log.parent), "WORK"))


def environment() -> dict[str, str]:
    """Where contenders find this package and the test weights."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


@contextmanager
def started(
    starts: Sequence[Start],
    logs: Path,
    failed: dict[str, str] | None = None,
    ends: float = math.inf,
) -> Iterator[dict[str, Process]]:
    """All of them, ready, by name.

    failed: takes the reasons of those that do not get ready, by name; without it the first of them
    raises ContenderError. ends: see Process.
    """

    def leave_out(name: str, exc: ContenderError) -> None:
        if failed is None:
            raise exc
        failed[name] = str(exc)

    running: dict[str, Process] = {}
    with ExitStack() as stack:
        for start in starts:
            log = logs / f"{start.name.replace(' ', '-')}.log"
            file = stack.enter_context(log.open("w"))
            try:
                child = subprocess.Popen(
                    start.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                    cwd=ROOT,
                    env={**environment(), **start.variables},
                )
            except OSError as exc:
                leave_out(start.name, ContenderError(f"{start.name} cannot be run: {exc}"))
                continue
            running[start.name] = Process(name=start.name, child=child, log=log, ends=ends)
            stack.callback(running[start.name].stop)
        # all of them at once, before the first is waited for
        for process in list(running.values()):
            stack.callback(process.let_go)
        for name, process in list(running.items()):
            try:
                process.wait_ready()
            except ContenderError as exc:
                leave_out(name, exc)
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


def alternate(runners: Sequence[Runner], budget: Budget) -> dict[str, list[Reply]]:
    """Every runner once in each round, A B C A B C; the replies by key, one for each round.

    A runner that fails is left out of the rounds that follow, and its last reply is the error.
    Where the time is over, the rounds that were whole by then are left.
    """
    ends = min((runner.process.ends for runner in runners), default=math.inf)
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
        if counted >= 1 and (now := time.perf_counter()) + (now - began) / counted > ends:
            break
        for runner in [runner for runner in alive if runner.takes_part(counted)]:
            time.sleep(_REST_S)
            try:
                reply = runner.process.ask(runner.question)
            except ContenderError as exc:
                if isinstance(exc, OutOfTimeError) and counted >= 1:
                    return {key: found[:counted] for key, found in replies.items()}
                replies[runner.key] = [{"error": str(exc)}]
                alive.remove(runner)
                continue
            if rounds >= budget.warm:
                replies[runner.key].append(reply)
        rounds += 1
    return replies
