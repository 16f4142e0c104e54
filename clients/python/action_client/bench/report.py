"""What was measured: as text for a terminal, as values for JSON, as a chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .._errors import ActionClientError
from .._plot import Axis, Chart, Series
from .load import Failures, Level
from .sweep import Measured

Row = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured. sent: each request, in words. by: who drives the load."""

    url: str
    model: str
    sent: str
    by: str


def text(subject: Subject, measured: Sequence[Measured]) -> str:
    """Tables of at most 80 columns, unless a name is very long."""
    blocks = [
        f"{subject.model} at {subject.url}, by {subject.by}\n{subject.sent}",
        _columns(_HEAD, [_level_row(one.level) for one in measured]),
    ]
    if _timers(measured):
        blocks.append(f"mean ms of a request in the client\n{_client_table(measured)}")
    if any(one.steps for one in measured):
        blocks.append(f"mean ms of a request in the server\n{_server_table(measured)}")
    if any(size > 1 for one in measured for step in one.steps for size in step.batches):
        blocks.append(f"executions by batch size\n{_batch_table(measured)}")
    return "\n\n".join(blocks)


def as_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    return [_level_as_json(one) for one in measured]


def error_as_json(error: ActionClientError) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def chart(subject: Subject, measured: Sequence[Measured]) -> Chart | None:
    """Latency over throughput, a point for each level; None where nothing was answered."""
    levels = [one.level for one in measured if one.level.latency_ms is not None]
    if not levels:
        return None
    numbers = [str(level.callers) for level in levels]
    series = [
        Series(
            name=name,
            points=[(level.throughput, getattr(level.latency_ms, name)) for level in levels],
            labels=numbers if name == "p95" else (),
        )
        for name in ("p50", "p95")
    ]
    return Chart(
        title=f"{subject.model}: latency over throughput, by number of callers",
        x=Axis(title="videos per second"),
        y=Axis(title="latency, ms"),
        series=series,
    )


def failures(measured: Sequence[Measured]) -> list[tuple[str, Failures]]:
    """Each kind of failure of each level, beside its number of callers in words."""
    return [
        (_callers(one.level.callers), failed)
        for one in measured
        for failed in one.level.failures.values()
    ]


def notes(measured: Sequence[Measured], wanted: int) -> list[str]:
    """What a reader of the numbers should know."""
    found: list[str] = []
    for one in measured:
        callers = _callers(one.level.callers)
        answers = one.level.answers
        if answers is not None and answers < wanted:
            found.append(f"{callers}: {answers} answers in the longest window that is allowed")
        cached = sum(step.from_cache for step in one.steps)
        if cached:
            found.append(f"{callers}: the response cache answered {cached} times; nothing ran")
    unknown = (one.server.message for one in measured if isinstance(one.server, ActionClientError))
    return [*found, *dict.fromkeys(f"no times of the server: {reason}" for reason in unknown)]


_HEAD = ("callers", "answers", "videos/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "errors")


def _level_row(level: Level) -> Row:
    latency = level.latency_ms
    times = (
        ("-",) * 4
        if latency is None
        else tuple(map(_ms, (latency.p50, latency.p90, latency.p95, latency.p99)))
    )
    answers = "-" if level.answers is None else str(level.answers)
    errors = sum(failed.count for failed in level.failures.values())
    return (str(level.callers), answers, _ms(level.throughput), *times, str(errors or "-"))


def _client_table(measured: Sequence[Measured]) -> str:
    names = _timers(measured)
    outside = any(one.outside_ms is not None for one in measured)
    head = ["callers", *(name.removesuffix("_ms") for name in names)]
    head += ["outside the server"] if outside else []
    rows = [
        [
            str(one.level.callers),
            *(_ms(one.level.timers.get(name)) for name in names),
            *((_ms(one.outside_ms),) if outside else ()),
        ]
        for one in measured
    ]
    return _columns(head, rows)


def _timers(measured: Sequence[Measured]) -> list[str]:
    """Of the first level that has any."""
    found = next((one.level.timers for one in measured if one.level.timers), {})
    return [name for name in found if name.endswith("_ms")]


def _server_table(measured: Sequence[Measured]) -> str:
    head = ("callers", "model", "queue", "input", "infer", "output", "total")
    rows = [
        (
            _once(one, number),
            step.model,
            *map(_ms, (step.queue_ms, step.input_ms, step.infer_ms, step.output_ms, step.total_ms)),
        )
        for one in measured
        for number, step in enumerate(one.steps)
    ]
    return _columns(head, rows, left=(1,))


def _batch_table(measured: Sequence[Measured]) -> str:
    """Of the steps alone: an ensemble executes nothing itself."""
    steps = [(_once(one, n), step) for one in measured for n, step in enumerate(one.steps[1:])]
    sizes = sorted({size for _, step in steps for size in step.batches})
    rows = [
        (callers, step.model, *(str(step.batches.get(size) or "-") for size in sizes))
        for callers, step in steps
    ]
    return _columns(("callers", "model", *map(str, sizes)), rows, left=(1,))


def _once(one: Measured, number: int) -> str:
    """The number of callers in the first row of a level, nothing in the others."""
    return "" if number else str(one.level.callers)


def _columns(head: Row, rows: Iterable[Row], left: Sequence[int] = ()) -> str:
    """Aligned to the right, but for the columns in `left`."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: Row) -> str:
        cells = zip(row, widths, range(len(row)), strict=True)
        return "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for cell, width, number in cells
        ).rstrip()

    return "\n".join(map(line, table))


def _ms(value: float | None) -> str:
    """Three digits, or as many as the whole part has."""
    if value is None:
        return "-"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def _callers(count: int) -> str:
    return f"{count} caller{'s' * (count != 1)}"


def _level_as_json(one: Measured) -> dict[str, Any]:
    level = one.level
    return {
        "callers": level.callers,
        "answers": level.answers,
        "throughput_per_s": level.throughput,
        "latency_ms": None if level.latency_ms is None else asdict(level.latency_ms),
        "client": dict(level.timers),
        "outside_server_ms": one.outside_ms,
        "errors": [
            {**error_as_json(failed.first), "count": failed.count}
            for failed in level.failures.values()
        ],
        "server": [asdict(step) for step in one.steps] or None,
    }
