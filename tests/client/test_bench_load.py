"""The closed loop: what is counted, and that the figures are those of the server that was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from action_client import DeadlineError, ServerError
from action_client.bench.load import Load, Recorder, Sample, drive, measure

Serve = Callable[[list[float], float], tuple[int, float]]
"""From the arrivals that wait, and the time, to how many are served at once and how long."""


def one_by_one(seconds: float) -> Serve:
    return lambda waiting, now: (1, seconds)


def in_batches(largest: int, seconds: float) -> Serve:
    return lambda waiting, now: (min(len(waiting), largest), seconds)


def exponential(mean: float) -> Serve:
    draw = np.random.default_rng(7)
    return lambda waiting, now: (1, float(draw.exponential(mean)))


def simulate(load: Load, workers: int, serve: Serve) -> Recorder:
    """Feeds a recorder with a first-come-first-served queue, in a time that is only computed."""
    recorder = Recorder(load)
    waiting: list[tuple[float, int]] = [(0.0, caller) for caller in range(load.callers)]
    free_at = [0.0] * workers
    running: list[tuple[float, int, float]] = []
    while not recorder.finished:
        worker = min(range(workers), key=free_at.__getitem__)
        # the next thing to happen: a worker takes what waits, or a request ends and comes again
        if waiting and (not running or max(free_at[worker], waiting[0][0]) < min(running)[0]):
            now = max(free_at[worker], waiting[0][0])
            there = [started for started, _ in waiting if started <= now]
            count, seconds = serve(there, now)
            free_at[worker] = now + seconds
            for started, caller in waiting[:count]:
                running.append((now + seconds, caller, started))
            del waiting[:count]
        else:
            ended, caller, started = running.pop(running.index(min(running)))
            recorder.add(Sample(caller=caller, started=started, ended=ended))
            waiting.append((ended, caller))
    return recorder


@pytest.mark.parametrize("callers", [1, 2, 4, 16])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seconds", [0.5, 20.0], ids=["shorter than a latency", "long"])
def test_throughput_is_what_the_server_can_do(callers: int, workers: int, seconds: float) -> None:
    load = Load(callers=callers, seconds=seconds, requests=1)
    level = measure(simulate(load, workers, one_by_one(0.7)).counted)
    busy = min(callers, workers)
    assert level.throughput == pytest.approx(busy / 0.7)
    assert level.latency_ms is not None
    # Little's law
    assert level.latency_ms.p50 == pytest.approx(callers / (busy / 0.7) * 1e3)


@pytest.mark.parametrize("callers", [4, 6, 16])
@pytest.mark.parametrize("seconds", [0.5, 3.2])
def test_answers_that_come_in_batches_are_not_counted_too_high(
    callers: int, seconds: float
) -> None:
    load = Load(callers=callers, seconds=seconds, requests=1)
    level = measure(simulate(load, 1, in_batches(4, 1.0)).counted)
    assert level.throughput == pytest.approx(4, rel=0.15)


def test_random_service_times_are_not_skewed_by_short_windows() -> None:
    levels = [
        measure(simulate(Load(callers=4, seconds=2, requests=1), 1, serve).counted)
        for serve in [exponential(0.1)]
        for _ in range(200)
    ]
    assert np.mean([level.throughput for level in levels]) == pytest.approx(10, rel=0.05)


def test_warm_up_is_not_counted() -> None:
    times = iter([5.0] * 8 + [0.1] * 1000)
    recorder = simulate(Load(callers=4, seconds=1, requests=1), 1, lambda *_: (1, next(times)))
    assert recorder.opened == pytest.approx(40)
    level = measure(recorder.counted)
    assert level.throughput == pytest.approx(10)
    assert level.latency_ms is not None
    assert level.latency_ms.p99 == pytest.approx(400)


def test_the_clients_timers_are_of_what_the_server_counts_meanwhile() -> None:
    recorder = simulate(Load(callers=4, seconds=3, requests=1), 1, one_by_one(0.1))
    assert recorder.opened is not None
    ends = [sample.ended for sample in recorder.ended]
    # all of them, in a row, in flight at the opening or not, until the last that counts
    assert ends == pytest.approx([recorder.opened + 0.1 * n for n in range(1, len(ends) + 1)])
    assert ends[-1] == recorder.counted[-1].ended
    timers = [Sample(caller=0, started=0, ended=1, timers={"a_ms": n}) for n in (1.0, 5.0)]
    assert measure(timers[:1], timers).timers == {"a_ms": 3.0}


def test_the_window_waits_for_enough_requests_but_not_for_ever() -> None:
    enough = simulate(Load(callers=1, seconds=1, requests=30), 1, one_by_one(0.2))
    assert len(enough.counted) == 30
    at_most = simulate(Load(callers=1, seconds=1, requests=1000, limit=3), 1, one_by_one(0.2))
    assert len(at_most.counted) == 15


class Server:
    """One in this process: `workers` requests at a time, each for `seconds`, in their order."""

    def __init__(self, workers: int, seconds: float) -> None:
        self._workers, self._seconds = ThreadPoolExecutor(workers), seconds
        self._lock, self.now, self.most = threading.Lock(), 0, 0

    def __call__(self) -> dict[str, float]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self._workers.submit(time.sleep, self._seconds).result()
        with self._lock:
            self.now -= 1
        return {"asked_ms": 3.0}


def test_threads_keep_the_load_up_and_measure_it() -> None:
    server, seen = Server(workers=2, seconds=0.02), []
    run = drive(server, Load(callers=6, seconds=0.5, requests=1), lambda: seen.append(server.now))
    level = measure(run.counted, run.ended)
    # 2 / 0.02 s, and less where other processes have the cores
    assert 20 <= level.throughput <= 100
    assert level.latency_ms is not None
    assert level.throughput * level.latency_ms.mean / 1e3 == pytest.approx(6, rel=0.1)
    assert level.timers == {"asked_ms": 3.0}
    assert server.most == 6
    assert len(seen) == 2
    assert server.now == 0  # all threads have ended


def failing(outcomes: Iterator[Exception | None]) -> Callable[[], dict[str, float]]:
    lock = threading.Lock()

    def send() -> dict[str, float]:
        with lock:
            error = next(outcomes)
        time.sleep(0.01 if error is None else 0.25)
        if error is not None:
            raise error
        return {}

    return send


def test_failures_are_counted_by_kind_and_stay_out_of_the_latencies() -> None:
    errors = [ServerError("broke"), None, DeadlineError("late"), None, ServerError("again")]
    outcomes = iter([None, *errors, *[None] * 10_000])
    load = Load(callers=1, seconds=0.01, requests=5, limit=1000, warmup=1)
    run = drive(failing(outcomes), load, lambda: None)
    level = measure(run.counted)
    assert level.answers == 2
    assert {kind: failed.count for kind, failed in level.failures.items()} == {
        "ServerError": 2,
        "DeadlineError": 1,
    }
    assert level.failures["ServerError"].first.message == "broke"
    assert level.latency_ms is not None
    assert level.latency_ms.p99 < 200  # ms; a failure takes 250
    assert level.throughput < 2 / 0.75  # whose time remains


def test_where_nothing_is_answered_there_is_no_latency() -> None:
    outcomes = iter([ServerError("broke")] * 1000)
    run = drive(failing(outcomes), Load(callers=2, seconds=0.1, requests=1), lambda: None)
    level = measure(run.counted)
    assert (level.answers, level.throughput, level.latency_ms) == (0, 0, None)


def test_a_failing_watch_is_raised_and_ends_the_level() -> None:
    server = Server(workers=1, seconds=0.01)
    threads = threading.active_count()
    with pytest.raises(ServerError):
        drive(server, Load(callers=2, seconds=60), failing(iter([ServerError("unwatched")])))
    # the server's own worker is left
    assert wait_until(lambda: threading.active_count() <= threads + 1)


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_bug_in_a_caller_is_raised_and_ends_the_level() -> None:
    outcomes = iter([None, None, RuntimeError("a bug"), *[None] * 1000])
    with pytest.raises(RuntimeError, match="a bug"):
        drive(failing(outcomes), Load(callers=2, seconds=60), lambda: None)
