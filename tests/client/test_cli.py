"""`action-client`: tables on stdout, reasons on stderr, one JSON object, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from action_client import (
    DependencyError,
    InvalidRequestError,
    ServerUnavailableError,
    VideoClient,
    VideoError,
    VideoLimitError,
    _request,
    cli,
)
from action_client._types import SampledFrames
from action_runtime.limits import Limits
from action_runtime.spec import Contract
from numpy.typing import NDArray
from support.fake_triton import FakeModel, FakeTriton, fake_triton, scores_of

COMMAND = [sys.executable, "-m", "action_client.cli"]


@pytest.fixture
def missing(tmp_path: Path) -> str:
    return str(tmp_path / "nowhere.mp4")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main([*arguments, "--json"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return code, json.loads(out)


def test_a_table_per_video(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([str(clip), str(clip), "--url", server.url, "--model", "moves", "--top-k", "2"])
    out, err = capsys.readouterr()
    with VideoClient(server.url, "moves") as client:
        first, second = client.classify(clip, top_k=2).top
    width = max(len(first.label), len(second.label))
    table = (
        f"{clip}\n"
        f"   1  {first.label:<{width}}  {first.score:.4f}\n"
        f"   2  {second.label:<{width}}  {second.score:.4f}\n"
    )
    assert (code, out, err) == (0, table * 2, "")


def test_exchanges_go_one_at_a_time_and_outcomes_keep_the_order_of_the_videos(
    server: FakeTriton, clip: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.delay_s = 0.1
    videos = [str(clip)] * 3 + [missing] + [str(clip)] * 2
    code, found = run_json(capsys, *videos, "--url", server.url, "--model", "moves")
    assert [result["video"] for result in found["results"]] == videos
    assert [result["error"] is None for result in found["results"]] == [True] * 3 + [False] + [
        True
    ] * 2
    assert code == VideoError.exit_code
    assert server.received.most_at_once == 1


def test_a_video_is_decoded_while_the_one_before_is_answered(
    server: FakeTriton, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, sample_file, begun = threading.Barrier(2), _request.sample_file, []

    def decode(path: Path, contract: Contract, limits: Limits) -> SampledFrames:
        begun.append(path)
        if len(begun) == 2:
            both.wait(5)
        return sample_file(path, contract, limits)

    def answer(clips: NDArray[np.uint8], contract: Contract) -> NDArray[np.float32]:
        if len(server.received.frames) == 1:
            both.wait(5)
        return scores_of(clips, contract)

    monkeypatch.setattr(_request, "sample_file", decode)
    server.behaviour.scores = answer
    assert cli.main([str(clip), str(clip), "--url", server.url, "--model", "moves"]) == 0


def test_no_video_is_begun_before_there_is_room_for_its_frames(
    server: FakeTriton, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first outcome is shown, the second waits, and a third has not been begun."""
    infers: list[int] = []
    show = cli._show

    def slow_show(*arguments: Any) -> None:
        time.sleep(0.3)
        infers.append(server.received.calls.count("infer moves"))
        show(*arguments)

    monkeypatch.setattr(cli, "_show", slow_show)
    assert cli.main([*[str(clip)] * 4, "--url", server.url, "--model", "moves"]) == 0
    assert infers == [2, 3, 4, 4]


def test_verbose_says_where_the_time_went_on_stderr(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(clip), "--url", server.url, "-v"]) == 0
    out, err = capsys.readouterr()
    for part in (" ms to decode", " ms to resize", " ms to pack", " MiB", " ms for the answer"):
        assert part in err
    assert " ms" not in out


def test_json_holds_what_python_gets(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run_json(capsys, str(clip), "--url", server.url, "--model", "moves")
    with VideoClient(server.url, "moves") as client:
        expected = client.classify(clip).top
    assert code == 0
    assert (found["url"], found["model"], found["error"]) == (server.url, "moves", None)
    (result,) = found["results"]
    assert result["video"] == str(clip)
    assert result["error"] is None
    assert [(p["label"], p["index"], p["score"]) for p in result["top"]] == [
        (p.label, p.index, p.score) for p in expected
    ]
    timings = result["timings"]
    assert timings["prepare_ms"] == pytest.approx(
        timings["decode_ms"] + timings["resize_ms"] + timings["encode_ms"]
    )
    assert timings["exchange_ms"] > 0
    assert timings["wire_bytes"] == server.received.frames[0].nbytes + 8 * 4


def test_a_failing_video_does_not_lose_the_others(
    server: FakeTriton, clip: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([str(clip), missing, str(clip), "--url", server.url])
    out, err = capsys.readouterr()
    assert code == VideoError.exit_code
    assert out.count(f"{clip}\n") == 2
    assert err == f"action-client: {missing} does not exist\n  check the path\n"


def test_a_failing_video_in_json(
    server: FakeTriton, clip: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run_json(capsys, missing, str(clip), "--url", server.url)
    assert code == VideoError.exit_code
    failed, fine = found["results"]
    assert failed["top"] is None
    assert failed["error"]["kind"] == "VideoError"
    assert failed["error"]["exit_code"] == code
    assert failed["error"]["hint"]
    assert fine["top"]
    assert found["error"] is None


def test_an_error_that_does_not_name_the_video_is_shown_with_it(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.infer_failures = [(grpc.StatusCode.INTERNAL, "boom")]
    assert cli.main([str(clip), "--url", server.url]) == 26
    assert f"action-client: {clip}: the server failed" in capsys.readouterr().err


def test_a_missing_server_is_one_error_and_not_one_per_video(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "127.0.0.1:1"
    code, found = run_json(capsys, str(clip), str(clip), "--url", address, "--model", "moves")
    assert code == ServerUnavailableError.exit_code
    assert found["error"]["kind"] == "ServerUnavailableError"
    assert found["results"] == []


def test_a_model_of_optical_flow_is_one_error_and_not_one_per_video(
    flow_server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run_json(capsys, str(clip), str(clip), "--url", flow_server.url)
    assert code == InvalidRequestError.exit_code
    assert "takes optical flow, 2 channels" in found["error"]["message"]
    assert found["results"] == []


def test_no_number_of_classes_is_one_error_and_not_one_per_video(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run_json(capsys, str(clip), str(clip), "--url", server.url, "--top-k", "0")
    assert code == InvalidRequestError.exit_code
    assert found["error"]["kind"] == "InvalidRequestError"
    assert found["results"] == []


def test_jpeg_without_opencv_is_one_error_and_not_one_per_video(
    lossy_server: FakeTriton,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, found = run_json(capsys, str(clip), str(clip), "--url", lossy_server.url)
    assert code == DependencyError.exit_code
    assert "takes frames as JPEG" in found["error"]["message"]
    assert "action-export[fast]" in found["error"]["hint"]
    assert found["results"] == []


def test_a_missing_decoder_is_one_error_and_not_one_per_video(
    contract: Contract,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with fake_triton(
        {"moves": FakeModel(dataclasses.replace(contract, decoder="opencv"))}
    ) as server:
        code, found = run_json(capsys, str(clip), str(clip), "--url", server.url)
    assert code == DependencyError.exit_code
    assert "frames that OpenCV decodes" in found["error"]["message"]
    assert found["results"] == []


def test_the_only_published_model_needs_no_name(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run_json(capsys, str(clip), "--url", server.url)
    assert (code, found["model"]) == (0, "moves")


def test_among_several_models_one_must_be_named(
    contract: Contract, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_triton({"b": FakeModel(contract), "a": FakeModel(contract)}) as server:
        assert cli.main([str(clip), "--url", server.url]) == 21
    assert "choose one with --model: a, b" in capsys.readouterr().err


def test_a_server_without_published_models(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_triton({"foreign": FakeModel(None)}) as server:
        assert cli.main([str(clip), "--url", server.url]) == 22
    assert "serves no model that action-export published" in capsys.readouterr().err


def test_no_video_is_argparses_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "VIDEO" in capsys.readouterr().err


def test_sigint_ends_it_cleanly(server: FakeTriton, clip: Path) -> None:
    server.behaviour.delay_s = 20
    process = subprocess.Popen(
        [*COMMAND, str(clip), "--url", server.url, "--model", "moves", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "infer moves" not in server.received.calls:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == "action-client: interrupted\n"
    assert json.loads(out)["error"]["message"] == "interrupted"


def test_sigint_ends_a_long_decode_at_once(server: FakeTriton, clip: Path) -> None:
    program = """
import sys, time
from action_client import cli
from action_runtime import decoding
decoded = decoding._decoded
def slowly(*arguments):
    for frame in decoded(*arguments):
        print("decoding", file=sys.stderr, flush=True)
        time.sleep(1)
        yield frame
decoding._decoded = slowly
sys.exit(cli.main(sys.argv[1:]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(clip), "--url", server.url, "--model", "moves"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "decoding\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.endswith("action-client: interrupted\n")


def test_a_broken_video_leaves_no_noise_of_ffmpeg(server: FakeTriton, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"hello world\n" * 100)
    ended = subprocess.run(
        [*COMMAND, str(broken), "--url", server.url],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == VideoError.exit_code
    assert len(ended.stderr.splitlines()) == 2
    assert ended.stdout == ""


def test_help_is_quick_and_loads_neither_grpc_nor_av() -> None:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "action_client.cli", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "VIDEO" in ended.stdout
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {"grpc", "av", "tritonclient.grpc", "cv2"}
    # 0.15 s on an idle machine; the sets above are what keeps it so.
    assert time.monotonic() - started < 5


# What is not the client's own text, and streams that cannot show all of it.

SHOUTING = ("\x1b[2J\x1b]0;owned\x07left", "\u202ethgir", "l\xe4uft \u2603")


@pytest.fixture
def shouting(contract: Contract) -> Iterator[FakeTriton]:
    """Its labels clear the screen, turn the line around, and lie outside of most encodings."""
    labelled = dataclasses.replace(contract, labels=SHOUTING)
    with fake_triton({"moves": FakeModel(labelled)}) as running:
        yield running


def test_labels_command_no_terminal_and_stay_whole_in_json(
    shouting: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(clip), "--url", shouting.url]) == 0
    out = capsys.readouterr().out
    assert {"\\x1b[2J\\x1b]0;owned\\x07left", "\\u202ethgir", "l\xe4uft"} <= set(out.split())
    assert not set(out) & set("\x1b\x07\u202e")
    _, found = run_json(capsys, str(clip), "--url", shouting.url)
    assert {p["label"] for p in found["results"][0]["top"]} == set(SHOUTING)


def test_the_words_of_a_server_command_no_terminal(
    server: FakeTriton, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.infer_failures = [(grpc.StatusCode.INTERNAL, "\x1b[31mred\x1b[0m")]
    cli.main([str(clip), "--url", server.url])
    assert "\\x1b[31mred" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_narrow_encoding_loses_no_video(
    shouting: FakeTriton, clip: Path, encoding: str, tmp_path: Path
) -> None:
    named = tmp_path / "l\xe4uft \u2603.mp4"
    named.write_bytes(clip.read_bytes())
    ended = subprocess.run(
        [*COMMAND, str(named), str(clip), "--url", shouting.url],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    out = ended.stdout.decode(encoding)
    assert "\\u2603.mp4" in out
    assert out.count("thgir") == 2


def test_who_stops_reading_hears_no_traceback(server: FakeTriton, clip: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, *[str(clip)] * 3, "--url", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


# Files.


@pytest.mark.parametrize("name", ["2024-05-01T12:30.mp4", "file:clip.mp4", "pipe:0"])
def test_a_name_with_a_colon_is_a_file(
    name: str, server: FakeTriton, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clip.read_bytes())
    assert cli.main([name, "--url", server.url]) == 0


@pytest.mark.parametrize(
    ("option", "limit"),
    [
        (["--max-file-bytes", "100"], "file_bytes"),
        (["--max-pixels", "100"], "pixels"),
        (["--max-frames", "59"], "frames"),
        (["--max-memory", "100"], "memory"),
        (["--max-seconds", "1e-9"], "seconds"),
        (["--formats", "avi,flv"], "formats"),
    ],
)
def test_each_limit_has_its_option(
    option: list[str],
    limit: str,
    server: FakeTriton,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found = run_json(capsys, str(clip), "--url", server.url, *option)
    assert code == VideoLimitError.exit_code
    (result,) = found["results"]
    assert result["error"]["kind"] == "VideoLimitError"
    if limit != "formats":
        assert option[0] in result["error"]["hint"]


def test_a_pipe_is_read_on_request(server: FakeTriton, clip: Path) -> None:
    command = [*COMMAND, "/dev/stdin", "--url", server.url]
    refused = subprocess.run(command, stdin=subprocess.PIPE, timeout=60, check=False)
    assert refused.returncode == VideoLimitError.exit_code
    with subprocess.Popen([*command, "--any-file"], stdin=subprocess.PIPE) as process:
        process.communicate(clip.read_bytes(), timeout=60)
    assert process.returncode == 0
