"""Whatever comes in, only ActionClientError comes out."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_client import (
    ActionClientError,
    AsyncVideoClient,
    ClientClosedError,
    InvalidRequestError,
    Limits,
    NotPublishedError,
    ServerError,
    VideoClient,
    VideoError,
    VideoLimitError,
    plan,
    published_models,
)
from action_runtime.spec import Contract
from support.fake_triton import FakeModel, FakeTriton, fake_triton

FRAMES = np.zeros((9, 48, 48, 3), np.uint8)


def both(server: FakeTriton, path: Path | None = None, **options: Any) -> list[ActionClientError]:
    """What each client raises of a file, or of frames where there is none."""

    def call(client: Any) -> Any:
        return client.classify_frames(FRAMES) if path is None else client.classify(path)

    async def run() -> None:
        async with AsyncVideoClient(server.url, "moves", **options) as client:
            await call(client)

    with (
        pytest.raises(ActionClientError) as first,
        VideoClient(server.url, "moves", **options) as client,
    ):
        call(client)
    with pytest.raises(ActionClientError) as second:
        asyncio.run(run())
    return [first.value, second.value]


# Limits reach the decoder, and come back as the client's own error.


def test_limits_are_those_of_the_client(server: FakeTriton, clip: Path) -> None:
    for error in both(server, clip, limits=Limits(frames=59)):
        assert isinstance(error, VideoLimitError)
        assert (error.limit, error.exit_code) == ("frames", 29)
        assert "--max-frames" in error.hint
    assert "infer moves" not in server.received.calls


def test_a_pipe_is_refused_and_not_waited_for(server: FakeTriton, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for error in both(server, tmp_path / "pipe.mp4"):
        assert isinstance(error, VideoLimitError)
        assert error.limit == "regular_files"


@pytest.mark.parametrize("content", [b"#EXTM3U\nclip.mp4\n", b"ffconcat version 1.0\nfile a\n"])
def test_a_script_is_no_video(server: FakeTriton, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for error in both(server, path):
        assert isinstance(error, VideoError)


def test_a_path_with_a_nul(server: FakeTriton) -> None:
    for error in both(server, Path("a\0b.mp4")):
        assert isinstance(error, VideoError)


# Options.


@pytest.mark.parametrize(
    "options",
    [{"timeout_s": s} for s in (float("inf"), float("-inf"), float("nan"), -1, 1e300)]
    + [{"model": m} for m in ("a\0", "a\udcff", "a\nb")]
    + [{"model_version": "1\0"}, {"url": "host:1\udc80"}],
)
def test_options_that_no_request_can_have(options: dict[str, Any]) -> None:
    given = {"url": "127.0.0.1:9", "model": "moves"} | options
    for kind in (VideoClient, AsyncVideoClient):
        with pytest.raises(InvalidRequestError):
            kind(**given)


def test_the_longest_timeout_is_one_that_grpc_can_count(server: FakeTriton) -> None:
    assert published_models(server.url, timeout_s=1e9) == ("moves",)


@pytest.mark.parametrize(
    "frames",
    [
        None,
        "clip.mp4",
        [[1], [2, 3]],
        [np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)],
    ],
    ids=["none", "text", "ragged", "of two sizes"],
)
def test_frames_that_are_no_array(server: FakeTriton, frames: Any) -> None:
    with VideoClient(server.url, "moves") as client:
        with pytest.raises(InvalidRequestError, match="frames"):
            client.classify_frames(frames)
        with pytest.raises(InvalidRequestError, match="frame_index"):
            client.classify_sampled(FRAMES, [[0], [1, 2]])  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [0, -1, 2.5, float("nan"), "5", None])
def test_a_number_of_classes_that_is_none(server: FakeTriton, top_k: Any) -> None:
    with VideoClient(server.url, "moves") as client, pytest.raises(InvalidRequestError):
        client.classify_frames(FRAMES, top_k=top_k)


@pytest.mark.parametrize("total", [0, -3, 2**31, 2**40])
def test_a_length_that_no_video_has(total: int, contract: Contract) -> None:
    with pytest.raises(InvalidRequestError, match="frame"):
        plan(total, None, contract)


# Answers.


def too_short(response: Any) -> None:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-1]


def missing(response: Any) -> None:
    del response.raw_output_contents[:]


def empty(response: Any) -> None:
    response.raw_output_contents[0] = b""


def odd_type(response: Any) -> None:
    response.outputs[0].datatype = "FP31"


def endless(response: Any) -> None:
    response.outputs[0].shape[1] = 2**62


def negative(response: Any) -> None:
    response.outputs[0].shape[1] = -7


def strings(response: Any) -> None:
    response.outputs[0].datatype = "BYTES"
    response.raw_output_contents[0] = struct.pack("<I", 2**31) + b"x"


def nothing(response: Any) -> None:
    response.Clear()


SPOILED = [too_short, missing, empty, odd_type, endless, negative, strings, nothing]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_an_answer_that_is_not_whole(server: FakeTriton, spoil: Callable[[Any], None]) -> None:
    server.behaviour.spoil = spoil
    for error in both(server):
        assert isinstance(error, ServerError)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "1", '{"schema": 1, "sampler": 3}', '{"schema": [1]}', "\x00"),
        '{"schema": 1, "sampler": {"kind": []}}',
    ],
)
def test_a_contract_of_another_hand(text: str, contract: Contract) -> None:
    with fake_triton({"moves": FakeModel(contract, text=text)}) as server:
        for error in both(server):
            assert isinstance(error, NotPublishedError)


# Closed clients.


def test_closing_ends_what_is_under_way(server: FakeTriton) -> None:
    server.behaviour.delay_s = 20
    client = VideoClient(server.url, "moves")
    threading.Thread(target=lambda: (wait_for_inference(server), client.close())).start()
    with pytest.raises(ClientClosedError):
        client.classify_frames(FRAMES)
    with pytest.raises(ClientClosedError):
        client.classify_frames(FRAMES)


def test_closing_ends_what_is_awaited(server: FakeTriton) -> None:
    server.behaviour.delay_s = 20

    async def run() -> None:
        client = AsyncVideoClient(server.url, "moves")
        call = asyncio.create_task(client.classify_frames(FRAMES))
        await asyncio.to_thread(wait_for_inference, server)
        await client.close()
        with pytest.raises(ClientClosedError):
            await call
        with pytest.raises(ClientClosedError):
            await client.classify_frames(FRAMES)

    asyncio.run(run())


def test_a_task_that_is_cancelled_stays_so(server: FakeTriton) -> None:
    server.behaviour.delay_s = 20

    async def run() -> None:
        async with AsyncVideoClient(server.url, "moves") as client:
            call = asyncio.create_task(client.classify_frames(FRAMES))
            await asyncio.to_thread(wait_for_inference, server)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(run())


def wait_for_inference(server: FakeTriton) -> None:
    while "infer moves" not in server.received.calls:
        time.sleep(0.01)


# Proxies.


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_proxy_of_the_environment_is_asked_only_on_request(
    server: FakeTriton, dead_proxy: None
) -> None:
    with VideoClient(server.url, "moves", retries=0) as client:
        client.classify_frames(FRAMES)

    async def run() -> None:
        async with AsyncVideoClient(server.url, "moves", retries=0) as client:
            await client.classify_frames(FRAMES)

    asyncio.run(run())
    for error in both(server, use_proxy=True, retries=0, timeout_s=5):
        assert error.exit_code in (24, 25)
