"""Both clients against a gRPC server on loopback: the same requests, answers and errors."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from action_client import (
    ActionClientError,
    AsyncVideoClient,
    Classification,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    NotPublishedError,
    ServerError,
    ServerUnavailableError,
    VideoClient,
    VideoError,
    _request,
    _transport,
    plan,
    published_models,
)
from action_runtime import decoders, jpeg, sampling, wire
from action_runtime.spec import Contract, Jpeg
from action_runtime.transforms import make_clips
from action_runtime.video import read_frames
from support.encode import encode, moving_shapes
from support.fake_triton import FakeModel, FakeTriton, fake_triton, scores_of

Call = Callable[..., Classification]


def classify_blocking(url: str, model: str, video: Any, **options: Any) -> Classification:
    with VideoClient(url, model, **options) as client:
        return client.classify(video)


def classify_awaiting(url: str, model: str, video: Any, **options: Any) -> Classification:
    async def run() -> Classification:
        async with AsyncVideoClient(url, model, **options) as client:
            return await client.classify(video)

    return asyncio.run(run())


@pytest.fixture(params=[classify_blocking, classify_awaiting], ids=["sync", "async"])
def classify(request: pytest.FixtureRequest) -> Call:
    call: Call = request.param
    return call


def expected_scores(frames: np.ndarray, contract: Contract) -> np.ndarray:
    """What the model gives for the frames at the sampled positions, none of them left out."""
    sampled = frames[sampling.sample(len(frames), None, contract.sampler)]
    clips = make_clips(sampled, np.arange(contract.positions, dtype=np.int32), contract)
    return scores_of(clips, contract)[0]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


# The happy path.


def test_a_file_gets_the_scores_of_its_sampled_frames(
    classify: Call, server: FakeTriton, clip: Path, contract: Contract
) -> None:
    found = classify(server.url, "moves", clip)
    frames = read_frames(clip, lambda info: plan_of_all(info.total_frames))[1]
    expected = expected_scores(frames, contract)
    assert found.scores.dtype == np.float32
    assert np.array_equal(found.scores, expected)
    assert found.top[0].index == int(np.argmax(expected))
    assert found.top[0].label == contract.labels[found.top[0].index]


def test_timings_say_where_the_time_went_and_what_was_sent(
    classify: Call, server: FakeTriton, clip: Path
) -> None:
    server.behaviour.delay_s = 0.2
    timings = classify(server.url, "moves", clip).timings
    parts = (timings.decode_ms, timings.resize_ms, timings.encode_ms)
    assert min(parts) > 0
    assert timings.prepare_ms == sum(parts)
    assert timings.exchange_ms >= 200
    (frames,), (index,) = server.received.frames, server.received.frame_index
    assert timings.wire_bytes == frames.nbytes + index.nbytes


def plan_of_all(total: int) -> Any:
    numbers = np.arange(total, dtype=np.int32)
    return _request.Plan(frame_numbers=numbers, frame_index=numbers)


def test_only_distinct_frames_of_the_target_size_are_sent(
    classify: Call, server: FakeTriton, clip: Path, contract: Contract
) -> None:
    classify(server.url, "moves", str(clip))
    chosen = plan(60, None, contract)
    (frames,), (index,) = server.received.frames, server.received.frame_index
    assert frames.shape == (len(chosen.frame_numbers), 48, 64, 3)
    assert np.array_equal(index, chosen.frame_index)


def test_small_frames_are_sent_as_they_are(
    classify: Call, server: FakeTriton, tmp_path: Path
) -> None:
    classify(server.url, "moves", encode(tmp_path / "small.mp4", moving_shapes(20, 40, 56)))
    assert server.received.frames[0].shape[1:] == (40, 56, 3)


def in_every_form(url: str, model: str, frames: Any, contract: Contract) -> list[Classification]:
    """Whole and sampled frames by the client, and both by the asyncio client."""
    chosen = plan(len(frames), None, contract)
    distinct = frames[chosen.frame_numbers]

    async def awaited() -> list[Classification]:
        async with AsyncVideoClient(url, model) as client:
            own = client.classify_sampled(distinct, chosen.frame_index)
            return [await client.classify_frames(frames), await own]

    with VideoClient(url, model) as client:
        return [
            client.classify_frames(frames),
            client.classify_sampled(distinct, chosen.frame_index),
            *asyncio.run(awaited()),
        ]


def test_frames_in_memory_get_the_same_answer_in_every_form(
    server: FakeTriton, contract: Contract
) -> None:
    frames = moving_shapes(50)
    for answer in in_every_form(server.url, "moves", frames, contract):
        assert np.array_equal(answer.scores, expected_scores(frames, contract))


def test_flow_in_memory_gets_the_same_answer_in_every_form(
    flow_server: FakeTriton, flow_contract: Contract
) -> None:
    flow = moving_shapes(50)[..., :2]
    for answer in in_every_form(flow_server.url, "flow", flow, flow_contract):
        assert np.array_equal(answer.scores, expected_scores(flow, flow_contract))


def test_jpeg_gets_the_same_answer_in_every_form(
    lossy_server: FakeTriton, lossy_contract: Contract
) -> None:
    frames = moving_shapes(50)
    chosen = plan(50, None, lossy_contract)
    small = wire.shrink(frames[chosen.frame_numbers], lossy_contract.resize)
    files = jpeg.encode(small, Jpeg(quality=90))
    clips = make_clips(jpeg.decode(files, lossy_contract), chosen.frame_index, lossy_contract)
    for answer in in_every_form(lossy_server.url, "lossy", frames, lossy_contract):
        assert np.array_equal(answer.scores, scores_of(clips, lossy_contract)[0])
        assert answer.timings.wire_bytes == sum(4 + len(file) for file in files) + 8 * 4
    for received in lossy_server.received.frames:
        assert list(received) == list(files)


def test_a_file_is_sent_as_jpeg_of_the_target_size(
    classify: Call, lossy_server: FakeTriton, clip: Path, lossy_contract: Contract
) -> None:
    found = classify(lossy_server.url, "lossy", clip)
    (files,) = lossy_server.received.frames
    count = len(plan(60, None, lossy_contract).frame_numbers)
    assert jpeg.decode(files, lossy_contract).shape == (count, 48, 64, 3)
    exact = read_frames(clip, lambda info: plan_of_all(info.total_frames))[1]
    expected = expected_scores(exact, lossy_contract)
    assert not np.array_equal(found.scores, expected)
    assert np.abs(found.scores - expected).max() < 1


def test_the_contract_is_read_once(server: FakeTriton, contract: Contract) -> None:
    frames = moving_shapes(20)
    with VideoClient(server.url, "moves") as client:
        client.classify_frames(frames)
        client.classify_frames(frames)
        assert client.contract == contract
    assert server.received.calls == ["config moves", "infer moves", "infer moves"]

    async def many() -> None:
        async with AsyncVideoClient(server.url, "moves") as client:
            await asyncio.gather(*(client.classify_frames(frames) for _ in range(4)))
            assert await client.contract() == contract

    server.received.calls.clear()
    asyncio.run(many())
    assert sorted(server.received.calls) == ["config moves"] + ["infer moves"] * 4


def test_threads_may_share_a_client(server: FakeTriton, contract: Contract) -> None:
    videos = [moving_shapes(30, seed=seed) for seed in range(6)]
    answers: dict[int, np.ndarray] = {}
    with VideoClient(server.url, "moves") as client:

        def run(number: int) -> None:
            answers[number] = client.classify_frames(videos[number]).scores

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, video in enumerate(videos):
        assert np.array_equal(answers[number], expected_scores(video, contract))


# asyncio.


def test_awaited_requests_are_on_their_way_together(server: FakeTriton, contract: Contract) -> None:
    videos = [moving_shapes(30, seed=seed) for seed in range(6)]
    server.behaviour.delay_s = 0.3

    async def run() -> list[Classification]:
        async with AsyncVideoClient(server.url, "moves") as client:
            return await asyncio.gather(*map(client.classify_frames, videos))

    answers = asyncio.run(run())
    assert server.received.most_at_once == 6
    for answer, video in zip(answers, videos, strict=True):
        assert np.array_equal(answer.scores, expected_scores(video, contract))


def test_decoding_does_not_hold_up_the_event_loop(
    server: FakeTriton, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = decoders.read_frames

    def slow(*arguments: Any) -> Any:
        time.sleep(0.4)
        return original(*arguments)

    monkeypatch.setattr(decoders, "read_frames", slow)

    async def run() -> int:
        ticks = 0
        async with AsyncVideoClient(server.url, "moves") as client:
            waiting = asyncio.create_task(client.classify(clip))
            while not waiting.done():
                await asyncio.sleep(0.02)
                ticks += 1
            await waiting
        return ticks

    assert asyncio.run(run()) >= 8


# Refusals. Each has its own class, and says the fix.


def failing(
    classify: Call, kind: type[ActionClientError], url: str, model: str, video: Any, **options: Any
) -> ActionClientError:
    with pytest.raises(kind) as caught:
        classify(url, model, video, **options)
    assert caught.value.hint
    cause = caught.value.__cause__
    assert not isinstance(cause, ActionClientError)
    return caught.value


def test_unknown_model(classify: Call, server: FakeTriton, clip: Path) -> None:
    error = failing(classify, ModelNotFoundError, server.url, "mvoes", clip)
    assert "'mvoes'" in error.message
    assert server.received.calls == ["config mvoes"]


def test_model_that_failed_to_load_on_an_older_server(
    classify: Call, server: FakeTriton, clip: Path
) -> None:
    text = "Request for unknown model: 'moves' has no available versions"
    server.behaviour.failures = [(grpc.StatusCode.UNAVAILABLE, text)]
    error = failing(classify, ModelNotFoundError, server.url, "moves", clip)
    assert text in error.message
    assert len(server.received.calls) == 1


def test_model_that_action_export_did_not_publish(
    classify: Call, server: FakeTriton, clip: Path
) -> None:
    error = failing(classify, NotPublishedError, server.url, "foreign", clip)
    assert "was not published by action-export" in error.message


def test_part_of_a_published_model(classify: Call, server: FakeTriton, clip: Path) -> None:
    error = failing(classify, NotPublishedError, server.url, "moves_preprocess", clip)
    assert "'moves'" in error.hint


def test_request_that_the_server_refuses(
    classify: Call, server: FakeTriton, tmp_path: Path
) -> None:
    """A model of another size than its contract says: what only the server can see."""
    refusal = (grpc.StatusCode.INVALID_ARGUMENT, "frames are smaller than the crop")
    server.behaviour.infer_failures = [refusal]
    video = encode(tmp_path / "clip.mp4", moving_shapes(9))
    error = failing(classify, InvalidRequestError, server.url, "moves", video)
    assert "frames are smaller than the crop" in error.message


@pytest.mark.parametrize("status", ["INTERNAL", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"])
def test_failure_of_the_server(classify: Call, server: FakeTriton, clip: Path, status: str) -> None:
    server.behaviour.infer_failures = [(grpc.StatusCode[status], "out of memory")]
    error = failing(classify, ServerError, server.url, "moves", clip)
    assert f"({status}): out of memory" in error.message
    assert server.received.calls.count("infer moves") == 1


def test_answer_of_another_form(classify: Call, server: FakeTriton, clip: Path) -> None:
    server.behaviour.scores = lambda clips, contract: np.zeros((1, 7), np.float32)
    failing(classify, ServerError, server.url, "moves", clip)


def test_broken_video(classify: Call, server: FakeTriton, tmp_path: Path) -> None:
    failing(classify, VideoError, server.url, "moves", tmp_path / "nowhere.mp4")
    assert "infer moves" not in server.received.calls


def test_a_file_for_a_model_of_optical_flow(
    classify: Call, flow_server: FakeTriton, clip: Path
) -> None:
    error = failing(classify, InvalidRequestError, flow_server.url, "flow", clip)
    assert error.message == "the model takes optical flow, 2 channels; a video file has none"
    assert "classify_frames or classify_sampled" in error.hint
    assert "uint8 [F, H, W, 2]" in error.hint
    assert "infer flow" not in flow_server.received.calls


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one(server: FakeTriton, clip: Path, top_k: int) -> None:
    with VideoClient(server.url, "moves") as client, pytest.raises(InvalidRequestError):
        client.classify(clip, top_k=top_k)
    assert not server.received.calls


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://localhost:8000", {}),
        ("localhost:8001", {"timeout_s": 0}),
        ("localhost:8001", {"timeout_s": float("nan")}),
        ("localhost:8001", {"retries": -1}),
    ],
)
def test_options_that_make_no_sense(classify: Call, url: str, options: dict[str, Any]) -> None:
    failing(classify, InvalidRequestError, url, "moves", "clip.mp4", **options)


def test_a_closed_client_says_so(server: FakeTriton) -> None:
    client = VideoClient(server.url, "moves")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.classify_frames(moving_shapes(9))

    async def run() -> None:
        client = AsyncVideoClient(server.url, "moves")
        await client.close()
        await client.close()
        await client.classify_frames(moving_shapes(9))

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(run())


# Deadlines and retries.


def test_every_call_has_a_deadline(classify: Call, server: FakeTriton, clip: Path) -> None:
    classify(server.url, "moves", clip, timeout_s=7.0)
    assert len(server.received.time_left_s) == 2
    # gRPC rounds up by some milliseconds.
    assert all(left is not None and 0 < left < 7.1 for left in server.received.time_left_s)


def test_an_answer_that_comes_too_late_is_not_awaited(
    classify: Call, server: FakeTriton, clip: Path
) -> None:
    server.behaviour.delay_s = 3.0
    started = time.monotonic()
    error = failing(classify, DeadlineError, server.url, "moves", clip, timeout_s=0.5)
    assert time.monotonic() - started < 2.5
    assert "0.5 s" in error.message


def test_nobody_there(classify: Call, clip: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    error = failing(classify, ServerUnavailableError, url, "moves", clip)
    assert url in error.message
    # 0.2 and 0.4 s between the three tries.
    assert 0.6 <= time.monotonic() - started < 5


def test_without_retries_a_missing_server_is_reported_at_once(classify: Call, clip: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    failing(classify, ServerUnavailableError, url, "moves", clip, retries=0)
    assert time.monotonic() - started < 0.5


def test_retries_end_before_the_deadline(classify: Call, clip: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    failing(classify, ServerUnavailableError, url, "moves", clip, retries=50, timeout_s=1.0)
    assert time.monotonic() - started < 2


def test_a_server_that_comes_up_meanwhile_is_found(
    classify: Call, clip: Path, contract: Contract
) -> None:
    port = free_port()
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(
            classify(f"127.0.0.1:{port}", "moves", clip, retries=5, timeout_s=20)
        )
    )
    asking.start()
    time.sleep(0.5)
    assert not answers
    with fake_triton({"moves": FakeModel(contract)}, port=port):
        asking.join(timeout=20)
    assert len(answers) == 1


def test_a_server_that_comes_up_in_the_first_pause_is_found_by_the_next_try(
    clip: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC's own default is to fail every call in the second after a refused connection."""
    port = free_port()
    with contextlib.ExitStack() as running:

        def start_and_sleep(seconds: float) -> None:
            running.enter_context(fake_triton({"moves": FakeModel(contract)}, port=port))
            time.sleep(seconds)

        clock = types.SimpleNamespace(sleep=start_and_sleep, monotonic=time.monotonic)
        monkeypatch.setattr(_transport, "time", clock)
        assert classify_blocking(f"127.0.0.1:{port}", "moves", clip, retries=1).top


def test_a_dropped_connection_is_tried_again(
    classify: Call, server: FakeTriton, clip: Path
) -> None:
    server.behaviour.infer_failures = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")] * 2
    assert classify(server.url, "moves", clip).top
    assert server.received.calls.count("infer moves") == 3


def test_a_third_failure_is_final(classify: Call, server: FakeTriton, clip: Path) -> None:
    server.behaviour.infer_failures = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")] * 3
    failing(classify, ServerUnavailableError, server.url, "moves", clip)
    assert server.received.calls.count("infer moves") == 3


def test_a_refused_request_is_not_sent_again(
    classify: Call, server: FakeTriton, clip: Path
) -> None:
    server.behaviour.infer_failures = [(grpc.StatusCode.INVALID_ARGUMENT, "no")]
    failing(classify, InvalidRequestError, server.url, "moves", clip)
    assert server.received.calls.count("infer moves") == 1


# What is there to call.


def test_published_models_leaves_out_parts_foreign_models_and_broken_ones(
    server: FakeTriton,
) -> None:
    assert published_models(server.url) == ("moves",)


def test_published_models_of_a_server_that_is_not_there() -> None:
    with pytest.raises(ServerUnavailableError):
        published_models(f"127.0.0.1:{free_port()}", retries=0)
