"""One level after another on one server: a `Meter` measures each, by our callers or NVIDIA's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .. import _response
from .._errors import ActionClientError
from .._transport import Connection, Endpoint
from . import perf_analyzer, server_stats
from .load import Level, Load, Send, drive, measure
from .requests import Target
from .server_stats import Counters, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One level. server: what each model did, the ensemble first, or why that is unknown."""

    level: Level
    server: tuple[Step, ...] | ActionClientError

    @property
    def steps(self) -> tuple[Step, ...]:
        return () if isinstance(self.server, ActionClientError) else self.server

    @property
    def outside_ms(self) -> float | None:
        """Mean time of an exchange that the server did not see: gRPC, the network, copies.

        Not below 0: Triton counts a request a little after its answer is out, so the two means may
        be of sets that differ by a request.
        """
        exchange = self.level.timers.get("exchange_ms")
        if exchange is None or not self.steps:
            return None
        return max(exchange - self.steps[0].total_ms, 0.0)


Meter = Callable[[Load], Measured]


@contextmanager
def connected(endpoint: Endpoint, model: str, version: str = "") -> Iterator[Target]:
    """A model on a server. Retries would hide failures in latencies: allow none.

    Raises:
        ActionClientError: nobody answers, or there is no such published model.
    """
    connection = Connection(endpoint)
    try:
        config = connection.model_config(model, version)
        yield Target(
            connection=connection,
            model=model,
            model_version=version,
            contract=_response.contract_of(config),
            parts=server_stats.models_of(config),
        )
    finally:
        connection.close()


def by_callers(target: Target, send: Send) -> Meter:
    """Threads that call `send` in a closed loop; see `load`."""

    def meter(load: Load) -> Measured:
        run = drive(send, load, lambda: server_stats.read(target.connection, target.parts))
        return _measured(measure(run.counted, run.ended), run.before, run.after)

    return meter


def by_perf_analyzer(target: Target, tool: perf_analyzer.Tool) -> Meter:
    """NVIDIA's tool. The server's share is over all that it does, its warm-up included."""

    def meter(load: Load) -> Measured:
        before = server_stats.read(target.connection, target.parts)
        level = perf_analyzer.measure(tool, load)
        return _measured(level, before, server_stats.read(target.connection, target.parts))

    return meter


def _measured(
    level: Level, before: Counters | ActionClientError, after: Counters | ActionClientError
) -> Measured:
    for reading in (before, after):
        if isinstance(reading, ActionClientError):
            return Measured(level=level, server=reading)
    assert not isinstance(before, ActionClientError)
    assert not isinstance(after, ActionClientError)
    return Measured(level=level, server=server_stats.between(before, after))
