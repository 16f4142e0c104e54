"""Tables that fit a terminal, JSON with the same numbers, and what a reader should know."""

from __future__ import annotations

import json

from action_client import ServerError
from action_client.bench import report
from action_client.bench.load import Failures, Latency, Level
from action_client.bench.report import Subject
from action_client.bench.server_stats import Step
from action_client.bench.sweep import Measured

SUBJECT = Subject(
    url="localhost:8001", model="moves", sent="8 frames of 340x256", by="action-bench"
)


def level(callers: int, *, answers: int = 100, failed: int = 0) -> Level:
    return Level(
        callers=callers,
        answers=answers,
        throughput=callers * 12.345,
        latency_ms=Latency(p50=81.0, p90=91.26, p95=99.99, p99=1234.5, mean=83.0)
        if answers
        else None,
        timers={"decode_ms": 20.0, "exchange_ms": 62.0, "wire_bytes": 4e6} if answers else {},
        failures={"ServerError": Failures(count=failed, first=ServerError("broke", hint="look"))}
        if failed
        else {},
    )


def step(model: str, *, cached: int = 0) -> Step:
    return Step(
        model=model,
        requests=100,
        failed=0,
        from_cache=cached,
        executions=40,
        batches={1: 10, 3: 30},
        queue_ms=1.5,
        input_ms=0.25,
        infer_ms=50.0,
        output_ms=0.0,
        total_ms=58.0,
    )


PARTS = (step("moves"), step("moves_preprocess"), step("moves_recognizer"))
WHOLE = Measured(level=level(4), server=PARTS)


def test_the_tables() -> None:
    assert report.text(SUBJECT, [Measured(level=level(1), server=PARTS[:2]), WHOLE]) == (
        "moves at localhost:8001, by action-bench\n"
        "8 frames of 340x256\n"
        "\n"
        "callers  answers  videos/s  p50 ms  p90 ms  p95 ms  p99 ms  errors\n"
        "      1      100      12.3    81.0    91.3   100.0    1234       -\n"
        "      4      100      49.4    81.0    91.3   100.0    1234       -\n"
        "\n"
        "mean ms of a request in the client\n"
        "callers  decode  exchange  outside the server\n"
        "      1    20.0      62.0                4.00\n"
        "      4    20.0      62.0                4.00\n"
        "\n"
        "mean ms of a request in the server\n"
        "callers  model             queue  input  infer  output  total\n"
        "      1  moves              1.50   0.25   50.0    0.00   58.0\n"
        "         moves_preprocess   1.50   0.25   50.0    0.00   58.0\n"
        "      4  moves              1.50   0.25   50.0    0.00   58.0\n"
        "         moves_preprocess   1.50   0.25   50.0    0.00   58.0\n"
        "         moves_recognizer   1.50   0.25   50.0    0.00   58.0\n"
        "\n"
        "executions by batch size\n"
        "callers  model              1   3\n"
        "      1  moves_preprocess  10  30\n"
        "      4  moves_preprocess  10  30\n"
        "         moves_recognizer  10  30"
    )


def test_failures_are_counted_beside_the_latencies_of_the_answers() -> None:
    failed = Measured(level=level(2, failed=7), server=PARTS)
    assert report.text(SUBJECT, [failed]).splitlines()[4].endswith("    1234       7")
    assert report.failures([failed, WHOLE])[0][0] == "2 callers"
    assert len(report.failures([failed, WHOLE])) == 1


def test_a_level_without_an_answer_has_no_latency() -> None:
    nothing = Measured(level=level(1, answers=0, failed=3), server=ServerError("none kept"))
    lines = report.text(SUBJECT, [nothing]).splitlines()
    assert lines[4].split() == ["1", "0", "12.3", "-", "-", "-", "-", "3"]
    assert len(lines) == 5  # and no table of times
    assert report.chart(SUBJECT, [nothing]) is None


def test_json_has_the_numbers_of_the_tables() -> None:
    (found,) = json.loads(json.dumps(report.as_json([WHOLE])))
    assert found["callers"] == 4
    assert found["throughput_per_s"] == 4 * 12.345
    assert found["latency_ms"]["p99"] == 1234.5
    assert found["client"]["wire_bytes"] == 4e6
    assert found["outside_server_ms"] == 4
    assert [part["model"] for part in found["server"]] == [part.model for part in PARTS]
    assert found["server"][0]["batches"] == {"1": 10, "3": 30}
    assert found["errors"] == []
    (failed,) = report.as_json([Measured(level=level(2, failed=7), server=ServerError("none"))])
    assert failed["server"] is None
    assert failed["errors"] == [
        {"kind": "ServerError", "message": "broke", "hint": "look", "exit_code": 26, "count": 7}
    ]


def test_the_chart_has_a_point_for_each_level_with_its_callers() -> None:
    chart = report.chart(SUBJECT, [Measured(level=level(1), server=PARTS), WHOLE])
    assert chart is not None
    p50, p95 = chart.series
    assert p50.points == [(12.345, 81.0), (4 * 12.345, 81.0)]
    assert [y for _, y in p95.points] == [99.99, 99.99]
    assert p95.labels == ["1", "4"]


def test_time_outside_the_server_is_never_below_zero() -> None:
    slow = Measured(level=level(1), server=(Step(**{**as_dict(PARTS[0]), "total_ms": 63.0}),))
    assert slow.outside_ms == 0


def as_dict(part: Step) -> dict[str, object]:
    return {name: getattr(part, name) for name in Step.__slots__}


def test_notes_say_what_the_numbers_do_not() -> None:
    few = Measured(level=level(1, answers=3), server=(step("moves", cached=90),))
    blind = Measured(level=level(2), server=ServerError("none kept"))
    assert report.notes([few, blind, blind], wanted=20) == [
        "1 caller: 3 answers in the longest window that is allowed",
        "1 caller: the response cache answered 90 times; nothing ran",
        "no times of the server: none kept",
    ]
    assert report.notes([WHOLE], wanted=20) == []
