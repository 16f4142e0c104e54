"""A closed loop: N callers, each sending its next request when the answer to its last is there.

A level goes through three phases, with N requests in flight all the time:

1. warm-up, until every caller has had its share of answers;
2. the window: what starts in it is counted, and waited for, one request of each caller at least;
3. cool-down: callers that are done keep sending until the counted requests of all have ended, so
   that the last of those meet the same load as the first.

**Throughput.** A caller that got n answers to its counted requests, in a time of D from the start
of the first to the end of the last, got n / D a second: whole requests, over the time they took.
Callers have almost the same D, since a window has one length for all, so

    throughput = answers of all callers / mean of D over the callers.

Requests are counted by their start, which does not depend on how long they will take: by Wald's
identity the expected sum of D over the callers is then the expected number of requests times the
mean latency, and the throughput is Little's N / mean latency, for windows of any length. Other ways
err the more, the longer a latency is, and so the more callers queue:

- every answer that comes in the window, over its length: right on average if the load is steady,
  but a batch more or less at an edge is much of a short window, and without a warm-up the first
  answers are of requests that met no queue;
- only what starts and ends in the window, over its length: loses a request for each caller. With 16
  callers in a queue and a window of three latencies, that is a third of them.

A failed request is no answer, and its time is no latency; it remains part of D.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .._errors import ActionClientError

Send = Callable[[], Mapping[str, float]]
"""Makes one request and waits for the answer; gives the client's timers by name."""

State = TypeVar("State")

# A server that refuses at once would otherwise be asked thousands of times a second.
_PAUSE_AFTER_FAILURE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One level of load.

    callers: requests in flight.
    seconds: the window's length.
    requests: counted requests that the window is kept open for.
    limit: the window closes after this many times `seconds` at the latest. Each caller has one
        counted request at least.
    warmup: answers of each caller before the window opens.
    """

    callers: int
    seconds: float = 5.0
    requests: int = 20
    limit: float = 10.0
    warmup: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request: who sent it, when it started and ended, in seconds, and what came of it."""

    caller: int
    started: float
    ended: float
    timers: Mapping[str, float] = field(default_factory=dict)
    failure: ActionClientError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds from sending to the answer; percentiles interpolate between requests."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Failed requests of one kind, and the first of them."""

    count: int
    first: ActionClientError


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What one level measured.

    answers: counted requests that were answered; None of perf_analyzer, which does not tell.
    throughput: answers per second; see above.
    latency_ms: of the answers; None where there was none.
    timers: the client's own, means over all answers that came within the window or while counted
        requests were in flight: the same that the server's statistics are of.
    failures: by kind, of the counted requests.
    """

    callers: int
    answers: int | None
    throughput: float
    latency_ms: Latency | None
    timers: Mapping[str, float]
    failures: Mapping[str, Failures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[State]):
    """A level: its counted samples, all that ended between two looks of `watch`, and the looks."""

    counted: Sequence[Sample]
    ended: Sequence[Sample]
    before: State
    after: State


class Recorder:
    """Follows a level through its phases by the samples that end, in the order of their end."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._warm = Counter[int]()
        self.counted: list[Sample] = []
        self.ended: list[Sample] = []
        self._settled: set[int] = set()
        self.opened: float | None = None
        self.closed: float | None = None

    @property
    def finished(self) -> bool:
        return len(self._settled) == self._load.callers

    def add(self, sample: Sample) -> None:
        if self.opened is None:
            self._warm_up(sample)
            return
        if not self.finished:
            self.ended.append(sample)
        if sample.started >= self.opened and sample.caller not in self._settled:
            self.counted.append(sample)
            self._close(sample, self.opened)
            if self.closed is not None:
                self._settled.add(sample.caller)

    def _warm_up(self, sample: Sample) -> None:
        self._warm[sample.caller] += 1
        ready = sum(count >= self._load.warmup for count in self._warm.values())
        if ready == self._load.callers:
            self.opened = sample.ended

    def _close(self, sample: Sample, opened: float) -> None:
        if self.closed is not None:
            return
        elapsed = sample.ended - opened
        enough = elapsed >= self._load.seconds and len(self.counted) >= self._load.requests
        if enough or elapsed >= self._load.seconds * self._load.limit:
            self.closed = sample.ended


def drive(send: Send, load: Load, watch: Callable[[], State]) -> Run[State]:
    """Puts one level of load on whatever `send` asks, which threads call at the same time.

    watch: called when the window opens, and when the last counted request has ended.

    Raises:
        Exception: what `send` raised beyond ActionClientError, or what `watch` raised.
    """
    level = _Callers(send, load)
    threads = [
        # Daemons: an interrupt should not wait for answers.
        threading.Thread(target=level.call, args=(caller,), daemon=True)
        for caller in range(load.callers)
    ]
    try:
        for thread in threads:
            thread.start()
        level.window_opened.wait()
        before = watch()
        level.window_ended.wait()
        after = watch()
    finally:
        level.stop.set()
    for thread in threads:
        thread.join()
    if level.broken is not None:
        raise level.broken
    recorder = level.recorder
    return Run(counted=recorder.counted, ended=recorder.ended, before=before, after=after)


class _Callers:
    """What the threads of one level share."""

    def __init__(self, send: Send, load: Load) -> None:
        self._send = send
        self._lock = threading.Lock()
        self.recorder = Recorder(load)
        self.window_opened, self.window_ended = threading.Event(), threading.Event()
        self.stop = threading.Event()
        self.broken: Exception | None = None

    def call(self, caller: int) -> None:
        try:
            while not self.stop.is_set():
                sample = self._request(caller)
                self._record(sample)
                if sample.failure is not None:
                    self.stop.wait(_PAUSE_AFTER_FAILURE_S)
        except Exception as exc:
            self.broken = exc
            for event in (self.window_opened, self.window_ended, self.stop):
                event.set()

    def _request(self, caller: int) -> Sample:
        timers: Mapping[str, float] = {}
        failure = None
        started = time.perf_counter()
        try:
            timers = self._send()
        except ActionClientError as exc:
            failure = exc
        ended = time.perf_counter()
        return Sample(caller=caller, started=started, ended=ended, timers=timers, failure=failure)

    def _record(self, sample: Sample) -> None:
        with self._lock:
            self.recorder.add(sample)
            if self.recorder.opened is not None:
                self.window_opened.set()
            if self.recorder.finished:
                self.window_ended.set()


def measure(counted: Sequence[Sample], ended: Sequence[Sample] = ()) -> Level:
    """What the samples of a level come to. There is at least one counted of each caller."""
    answers = [sample for sample in counted if sample.failure is None]
    spans = _spans(counted)
    return Level(
        callers=len(spans),
        answers=len(answers),
        throughput=len(answers) / (sum(spans) / len(spans)),
        latency_ms=_latency([(sample.ended - sample.started) * 1e3 for sample in answers]),
        timers=_means([sample.timers for sample in ended or counted if sample.failure is None]),
        failures=_by_kind([sample.failure for sample in counted if sample.failure is not None]),
    )


def _spans(samples: Sequence[Sample]) -> list[float]:
    """D of each caller, in seconds."""
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for sample in samples:
        starts[sample.caller] = min(sample.started, starts.get(sample.caller, sample.started))
        ends[sample.caller] = max(sample.ended, ends.get(sample.caller, sample.ended))
    return [ends[caller] - start for caller, start in starts.items()]


def _latency(latencies_ms: Sequence[float]) -> Latency | None:
    import numpy as np

    if not latencies_ms:
        return None
    p50, p90, p95, p99 = (float(p) for p in np.percentile(latencies_ms, (50, 90, 95, 99)))
    return Latency(p50=p50, p90=p90, p95=p95, p99=p99, mean=float(np.mean(latencies_ms)))


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}


def _by_kind(errors: Sequence[ActionClientError]) -> dict[str, Failures]:
    counts = Counter(type(error).__name__ for error in errors)
    first = {type(error).__name__: error for error in reversed(errors)}
    return {kind: Failures(count=count, first=first[kind]) for kind, count in counts.items()}
