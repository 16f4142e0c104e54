"""NVIDIA's perf_analyzer: what it is given and what its report comes to."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from action_client import PerfAnalyzerError
from action_client._types import SampledFrames
from action_client.bench import perf_analyzer
from action_client.bench.load import Latency, Load
from action_client.bench.perf_analyzer import Tool
from support import fake_perf_analyzer

FRAMES = SampledFrames(
    frames=np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3),
    frame_index=np.array([0, 1, 1], np.int32),
    resize_ms=0.0,
)


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    programs, data = tmp_path / "bin", tmp_path / "data"
    programs.mkdir()
    data.mkdir()
    return Tool(
        program=str(fake_perf_analyzer.install(programs)),
        url="localhost:8001",
        model="moves",
        model_version="",
        data=perf_analyzer.write_data(FRAMES, data),
    )


def test_it_gets_the_very_frames_with_their_shapes(tool: Tool) -> None:
    (request,) = json.loads(tool.data.read_text())["data"]
    frames, index = request["frames"], request["frame_index"]
    assert frames["shape"] == [2, 3, 4, 3]
    assert base64.b64decode(frames["content"]["b64"]) == FRAMES.frames.tobytes()
    assert index["shape"] == [3]
    assert base64.b64decode(index["content"]["b64"]) == FRAMES.frame_index.tobytes()


def test_it_is_told_the_model_the_load_and_where_to_report(tool: Tool) -> None:
    arguments = perf_analyzer.arguments(tool, Load(callers=4, seconds=2.5))
    given = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    assert given["-m"] == "moves"
    assert given["-u"] == "localhost:8001"
    assert given["-i"] == "grpc"
    assert given["--concurrency-range"] == "4"
    assert given["--measurement-interval"] == "2500"
    assert "-x" not in arguments


def test_a_version_is_passed_on(tool: Tool) -> None:
    versioned = Tool(
        program=tool.program, url=tool.url, model="moves", model_version="3", data=tool.data
    )
    arguments = perf_analyzer.arguments(versioned, Load(callers=1))
    assert arguments[arguments.index("-x") + 1] == "3"


def test_its_report_is_read_in_milliseconds(tool: Tool) -> None:
    level = perf_analyzer.measure(tool, Load(callers=4))
    assert (level.callers, level.answers, level.throughput) == (4, None, 14.3751)
    assert level.latency_ms == Latency(
        p50=143.646, p90=198.999, p95=211.395, p99=234.040, mean=135.403
    )
    assert level.timers == {"send_ms": 0.021, "receive_ms": 0.004, "exchange_ms": 135.403}


def test_the_rows_of_a_report_come_in_any_order() -> None:
    names = fake_perf_analyzer.HEADER.split(",")
    rows = [
        dict(zip(names, [callers, *fake_perf_analyzer.ROW.split(",")], strict=True))
        | {"Inferences/Second": rate}
        for callers, rate in (("8", "20.5"), ("1", "30"), ("2", "40"))
    ]
    assert [perf_analyzer.parse(rows, n).throughput for n in (1, 2, 8)] == [30, 40, 20.5]


@pytest.mark.parametrize("rows", [[], [{"Request Rate": "1"}], [{"Concurrency": "1"}]])
def test_a_report_of_another_kind_is_an_error(rows: list[dict[str, str]]) -> None:
    with pytest.raises(PerfAnalyzerError, match="cannot be read"):
        perf_analyzer.parse(rows, 1)


def test_a_failure_says_what_it_printed_last(tool: Tool) -> None:
    fake_perf_analyzer.install(
        Path(tool.program).parent, "print('Failed to obtain stable measurement'); sys.exit(2)"
    )
    with pytest.raises(PerfAnalyzerError, match="exit code 2: Failed to obtain stable") as caught:
        perf_analyzer.measure(tool, Load(callers=1))
    assert "--seconds" in caught.value.hint


def test_the_report_of_an_earlier_level_is_not_taken_for_this_one(tool: Tool) -> None:
    perf_analyzer.measure(tool, Load(callers=1))
    fake_perf_analyzer.install(Path(tool.program).parent, "print('no such model')")
    with pytest.raises(PerfAnalyzerError, match="wrote no report: no such model") as caught:
        perf_analyzer.measure(tool, Load(callers=1))
    assert caught.value.hint == "see to what it says, or leave out --perf-analyzer"


def test_without_it_the_error_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PerfAnalyzerError, match="not on PATH") as caught:
        perf_analyzer.find()
    assert "pip install perf-analyzer" in caught.value.hint
    assert "-py3-sdk" in caught.value.hint


@pytest.mark.parametrize("use_proxy", [False, True])
def test_proxies_of_the_environment_are_its_own_only_on_request(
    use_proxy: bool, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    told = "import os; print('proxy', os.environ.get('http_proxy')); sys.exit(2)"
    fake_perf_analyzer.install(Path(tool.program).parent, told)
    asked = dataclasses.replace(tool, use_proxy=use_proxy)
    expected = "proxy http://127.0.0.1:9" if use_proxy else "proxy None"
    with pytest.raises(PerfAnalyzerError, match=expected):
        perf_analyzer.measure(asked, Load(callers=1))
