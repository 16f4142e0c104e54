"""`action-bench`: tables on stdout, notes on stderr, one JSON object, a plot, exit codes."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import grpc
import numpy as np
import pytest
from action_client import (
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    PerfAnalyzerError,
    ServerError,
    ServerUnavailableError,
    VideoError,
    _request,
)
from action_client.bench import cli
from action_runtime.spec import Contract
from numpy.typing import NDArray
from support import fake_perf_analyzer
from support.fake_triton import FakeTriton

COMMAND = [sys.executable, "-m", "action_client.bench.cli"]
SHORT = ("--seconds", "0.1", "--requests", "3", "--warmup", "1")


def run_json(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = cli.main([*arguments, *SHORT, "--json"])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return code, json.loads(out), err


def test_a_level_for_each_number_of_callers(
    server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([server.url, "moves", *SHORT, "--concurrency", "1", "3"])
    out, _ = capsys.readouterr()
    assert code == 0
    head, table, *_ = out.split("\n\n")
    assert head.startswith(f"moves at {server.url}, by action-bench\n8 frames of 64x48, ")
    assert [row.split()[0] for row in table.splitlines()] == ["callers", "1", "3"]
    assert server.received.most_at_once == 3


def test_a_server_without_statistics_is_noted_and_no_failure(
    server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = run_json(capsys, server.url, "moves", "--concurrency", "1", "2")
    assert (code, found["error"]) == (0, None)
    assert [level["server"] for level in found["levels"]] == [None, None]
    (note,) = found["notes"]
    assert note.startswith("no times of the server: ")
    assert err.count(note) == 1


def test_without_a_video_the_frames_of_a_drawn_clip_are_sent(
    server: FakeTriton, contract: Contract, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = run_json(capsys, server.url, "moves", "--concurrency", "1")
    assert code == 0
    plan = _request.plan(300, 30.0, contract)
    first, *others = server.received.frames
    assert len(others) >= 4  # a first request, one to warm up, and three
    assert all(np.array_equal(first, other) for other in others)
    assert first.shape == (len(plan.frame_numbers), 48, 64, 3)
    assert len(np.unique(first.reshape(len(first), -1), axis=0)) == len(first)
    np.testing.assert_array_equal(server.received.frame_index[0], plan.frame_index)
    assert found["sent"] == "8 frames of 64x48, 0.1 MB, of a drawn clip, prepared once"
    assert list(found["levels"][0]["client"]) == ["exchange_ms"]


def test_the_frames_of_a_video_are_what_the_client_sends(
    server: FakeTriton, contract: Contract, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = run_json(capsys, server.url, "moves", str(clip), "--concurrency", "1")
    assert code == 0
    np.testing.assert_array_equal(
        server.received.frames[-1], _request.sample_file(clip, contract).frames
    )
    assert str(clip) in found["sent"]


def test_with_decoding_each_request_is_from_a_file_to_scores(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = run_json(
        capsys, server.url, "moves", str(clip), "--include-decode", "--concurrency", "2"
    )
    (level,) = found["levels"]
    assert code == 0
    assert level["client"]["decode_ms"] > 0
    assert level["latency_ms"]["mean"] > level["client"]["exchange_ms"]


def test_optical_flow_is_drawn_as_well(
    flow_server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = run_json(capsys, flow_server.url, "flow", "--concurrency", "1")
    assert code == 0
    assert flow_server.received.frames[0].shape[-1] == 2


def test_failed_requests_are_shown_and_set_the_exit_status(
    server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = itertools.count(1)

    def scores(clips: NDArray[np.uint8], contract: Contract) -> NDArray[np.float32]:
        """The fourth request is the second that counts."""
        return np.zeros((1, contract.classes + (next(asked) == 4)), np.float32)

    server.behaviour.scores = scores
    code, found, err = run_json(capsys, server.url, "moves", "--concurrency", "1")
    (level,) = found["levels"]
    assert code == ServerError.exit_code
    assert found["error"] is None
    (failed,) = level["errors"]
    assert (failed["kind"], failed["count"]) == ("ServerError", 1)
    assert level["answers"] >= 2
    assert "1 caller: 1 x the server should send FP32 scores" in err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("127.0.0.1:1", "moves"), ServerUnavailableError),
        (("{url}", "nothing"), ModelNotFoundError),
        (("{url}", "moves", "nowhere.mp4"), VideoError),
        (("http://{url}", "moves"), InvalidRequestError),
    ],
)
def test_what_would_fail_every_request_is_one_error(
    arguments: tuple[str, ...],
    error: type[Exception],
    server: FakeTriton,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found, err = run_json(capsys, *(part.format(url=server.url) for part in arguments))
    assert code == error.exit_code  # type: ignore[attr-defined]
    assert found["error"]["kind"] == error.__name__
    assert found["error"]["exit_code"] == code
    assert found["levels"] == []
    assert found["error"]["message"] in err


@pytest.mark.parametrize("mode", [(), ("--include-decode",)])
def test_a_first_request_that_is_not_answered_ends_it(
    mode: tuple[str, ...], server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.delay_s = 20
    code, found, _ = run_json(
        capsys, server.url, "moves", str(clip), *mode, "--timeout", "0.2", "--concurrency", "1"
    )
    assert found["levels"] == []
    assert (code, found["error"]["kind"]) == (DeadlineError.exit_code, "DeadlineError")


@pytest.mark.parametrize("mode", [(), ("--include-decode",)])
def test_a_refused_connection_is_not_tried_again(
    mode: tuple[str, ...], server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.infer_failures = [(grpc.StatusCode.UNAVAILABLE, "gone")]
    code, _, _ = run_json(capsys, server.url, "moves", str(clip), *mode, "--concurrency", "1")
    assert code == ServerUnavailableError.exit_code


def test_the_plot_has_a_point_for_each_level(
    server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curve.svg"
    run_json(capsys, server.url, "moves", "--concurrency", "1", "2", "--plot", str(path))
    assert len(list(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}circle"))) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        ("--plot", "curve.png"),
        ("--plot", "no/such/folder/curve.svg"),
        ("--plot", "{folder}"),
        ("--concurrency", "0"),
        ("--seconds", "0"),
        ("--include-decode",),
        ("clip.mp4", "--include-decode", "--perf-analyzer"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    wrong: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    with pytest.raises(SystemExit) as caught:
        cli.main(["127.0.0.1:1", "moves", *(part.format(folder=folder) for part in wrong)])
    assert caught.value.code == 2
    assert "action-bench: error: " in capsys.readouterr().err


def test_perf_analyzer_is_driven_level_by_level(
    server: FakeTriton,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(fake_perf_analyzer.install(tmp_path).parent))
    code, found, _ = run_json(
        capsys, server.url, "moves", "--perf-analyzer", "--concurrency", "1", "4"
    )
    assert (code, found["by"]) == (0, "perf_analyzer")
    assert [level["callers"] for level in found["levels"]] == [1, 4]
    assert found["levels"][1]["latency_ms"]["p50"] == 143.646
    assert len(server.received.frames) == 1  # of ours, the first request only


def test_where_perf_analyzer_is_missing_that_is_the_error(
    server: FakeTriton,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, found, _ = run_json(capsys, server.url, "moves", "--perf-analyzer")
    assert code == PerfAnalyzerError.exit_code
    assert "pip install perf-analyzer" in found["error"]["hint"]


def test_perf_analyzer_is_refused_before_measuring_where_frames_travel_as_jpeg(
    lossy_server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = run_json(capsys, lossy_server.url, "lossy", "--perf-analyzer")
    assert code == PerfAnalyzerError.exit_code
    assert "takes frames as JPEG (frames_jpeg)" in found["error"]["message"]
    assert found["error"]["hint"] == "leave out --perf-analyzer"
    assert found["levels"] == []


def test_an_interrupt_keeps_the_levels_that_were_measured(server: FakeTriton) -> None:
    process = subprocess.Popen(
        [*COMMAND, server.url, "moves", "--concurrency", "1", "2", "--seconds", "1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while server.received.most_at_once < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err.endswith("action-bench: interrupted\n")
    found = json.loads(out)
    assert [level["callers"] for level in found["levels"]] == [1]
    assert found["error"]["message"] == "interrupted"


def test_help_is_quick_and_loads_neither_grpc_nor_av() -> None:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "action_client.bench.cli", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "VIDEO" in ended.stdout
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {"grpc", "av", "tritonclient.grpc", "cv2", "matplotlib"}
    # 0.2 s on an idle machine; the sets above are what keeps it so.
    assert time.monotonic() - started < 5


def test_limits_of_a_video_hold_here_too(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--include-decode"]):
        code, found, _ = run_json(
            capsys, server.url, "moves", str(clip), "--max-frames", "59", *more
        )
        assert (code, found["error"]["kind"]) == (29, "VideoLimitError")


def test_names_command_no_terminal(
    server: FakeTriton, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "\x1b[2J.mp4"
    named.write_bytes(clip.read_bytes())
    assert cli.main([server.url, "moves", str(named), *SHORT, "--concurrency", "1"]) == 0
    out, err = capsys.readouterr()
    assert "\\x1b[2J.mp4" in out
    assert "\x1b" not in out + err
