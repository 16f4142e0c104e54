"""`check_health` and `action-client --health`: a real request, for probes of liveness."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import grpc
import numpy as np
import pytest
from action_client import (
    AsyncVideoClient,
    DeadlineError,
    ServerError,
    ServerUnavailableError,
    VideoClient,
    cli,
)
from action_runtime.spec import Contract, Crop, FixedResize
from support.fake_triton import FakeModel, FakeTriton, fake_triton


def probe(server: FakeTriton, *arguments: str) -> int:
    return cli.main(["--health", "--url", server.url, *arguments])


def test_a_model_that_answers_is_healthy(
    server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(server, "--model", "moves") == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"moves at {server.url} answers\n", "")
    assert server.received.calls == ["config moves", "infer moves"]


def test_the_only_published_model_needs_no_name(server: FakeTriton) -> None:
    assert probe(server) == 0
    assert server.received.calls[-1] == "infer moves"


def test_flow_and_jpeg_are_asked_in_their_own_form(
    flow_server: FakeTriton, lossy_server: FakeTriton
) -> None:
    assert probe(flow_server) == 0
    assert flow_server.received.frames[0].shape[-1] == 2
    assert probe(lossy_server) == 0
    assert lossy_server.received.frames[0].dtype == np.object_


@pytest.mark.parametrize(
    "change",
    [
        {"resize": None},
        {"resize": FixedResize(width=40, height=30), "crop": None},
        {"crop": Crop(kind="ten", width=40, height=48)},
    ],
    ids=["no resize", "fixed size", "ten crops"],
)
def test_the_frame_fits_any_contract(contract: Contract, change: dict[str, object]) -> None:
    with fake_triton({"m": FakeModel(dataclasses.replace(contract, **change))}) as server:
        assert probe(server) == 0


def test_no_two_probes_are_alike_so_that_no_cache_answers(server: FakeTriton) -> None:
    with VideoClient(server.url, "moves") as client:
        client.check_health()
        client.check_health()
    first, second = server.received.frames
    assert first.shape == second.shape == (1, 48, 48, 3)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.array([[0.5, np.nan, 0.5]], np.float32), "1 of the 3 scores .* are no numbers"),
        (np.array([[0.5, np.inf, 0.5]], np.float32), "1 of the 3 scores .* are no numbers"),
        (np.zeros((1, 4), np.float32), r"of shape \[1, 3\]; got FP32 of shape \[1, 4\]"),
    ],
)
def test_a_wrong_answer_is_no_health(
    scores: np.ndarray, reason: str, server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.scores = lambda clips, contract: scores
    with VideoClient(server.url, "moves") as client, pytest.raises(ServerError, match=reason):
        client.check_health()
    assert probe(server) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("action-client: ")


def test_a_dead_step_is_no_health(server: FakeTriton, capsys: pytest.CaptureFixture[str]) -> None:
    """As Triton 24.10 answers for a stub that has died, while its own health calls stay good."""
    dead = (grpc.StatusCode.INTERNAL, "Stub process 'moves_preprocess' is not healthy.")
    server.behaviour.infer_failures = [dead]
    assert probe(server) == 1
    assert "is not healthy" in capsys.readouterr().err


def test_the_timeout_counts(server: FakeTriton, capsys: pytest.CaptureFixture[str]) -> None:
    server.behaviour.delay_s = 3
    assert probe(server, "--model", "moves", "--timeout", "0.3") == 1
    assert "within 0.3 s" in capsys.readouterr().err


def test_json_tells_it_in_one_object(
    server: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(server, "--json") == 0
    good = {"url": server.url, "model": "moves", "healthy": True, "error": None}
    assert json.loads(capsys.readouterr().out) == good
    assert probe(server, "--json", "--model", "nobody") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["healthy"]) == ("nobody", False)
    assert found["error"]["kind"] == "ModelNotFoundError"


def test_no_server_is_no_health(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--health", "--url", "127.0.0.1:9", "--timeout", "1"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--health", "clip.mp4"], []])
def test_either_videos_or_a_probe(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_the_async_client_probes_as_well(server: FakeTriton) -> None:
    async def check() -> None:
        async with AsyncVideoClient(server.url, "moves") as client:
            await client.check_health()
            server.behaviour.infer_failures = [(grpc.StatusCode.INTERNAL, "dead")]
            with pytest.raises(ServerError, match="dead"):
                await client.check_health()
        server.behaviour.delay_s = 5
        async with AsyncVideoClient(server.url, "moves", timeout_s=2) as client:
            with pytest.raises((DeadlineError, ServerUnavailableError)):
                await client.check_health()

    asyncio.run(check())
