"""From frames to tensors."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_client import DependencyError, InvalidRequestError, _request, plan
from action_client._types import SampledFrames
from action_runtime import jpeg, sampling, transforms
from action_runtime.spec import (
    Contract,
    DenseSampleFrames,
    Jpeg,
    KeepRatioResize,
    SampleFrames,
    Sampler,
)
from support.encode import encode, moving_shapes
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

AT_FIXED_RATE = SampleFrames(clip_len=4, frame_interval=2, num_clips=1, target_fps=10)


def noise(count: int, height: int, width: int) -> np.ndarray:
    shape = (count, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("total", [1, 7, 60, 1000])
def test_a_plan_names_each_frame_once_and_puts_it_where_the_sampler_wants_it(
    total: int, contract: Contract
) -> None:
    chosen = plan(total, 25.0, contract)
    expected = sampling.sample(total, 25.0, contract.sampler)
    assert np.array_equal(chosen.frame_numbers[chosen.frame_index], expected)
    assert np.all(np.diff(chosen.frame_numbers) > 0)
    assert chosen.frame_numbers.dtype == chosen.frame_index.dtype == np.int32


def test_frame_rate_counts_only_where_the_model_reads_it(contract: Contract) -> None:
    reading = dataclasses.replace(contract, sampler=AT_FIXED_RATE, reads_fps=True)
    ignoring = dataclasses.replace(contract, sampler=AT_FIXED_RATE, reads_fps=False)
    assert np.ptp(plan(900, 60.0, reading).frame_numbers) > 30
    assert np.ptp(plan(900, 60.0, ignoring).frame_numbers) < 10
    assert np.ptp(plan(900, None, ignoring).frame_numbers) < 10


def test_a_missing_frame_rate_is_refused_where_the_model_needs_it(contract: Contract) -> None:
    needing = dataclasses.replace(contract, sampler=AT_FIXED_RATE, reads_fps=True)
    with pytest.raises(InvalidRequestError, match="10 frames per second") as caught:
        plan(900, None, needing)
    assert "fps=" in caught.value.hint


def test_no_frames_are_refused(contract: Contract) -> None:
    with pytest.raises(InvalidRequestError, match="at least one frame"):
        plan(0, None, contract)


# All frames of a video, or those of a plan.


def test_from_all_frames_only_the_sampled_ones_are_taken(contract: Contract) -> None:
    frames = moving_shapes(60, 48, 64)
    sampled = _request.sample_frames(frames, None, contract)
    expected = frames[sampling.sample(60, None, contract.sampler)]
    assert np.array_equal(sampled.frames[sampled.frame_index], expected)
    assert len(sampled.frames) == len(np.unique(sampled.frame_index)) < 60


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((72, 96, 3), np.uint8),
        np.zeros((5, 72, 96, 4), np.uint8),
        np.zeros((5, 72, 96, 3), np.float32),
        np.zeros((0, 72, 96, 3), np.uint8),
        np.zeros((5, 0, 96, 3), np.uint8),
    ],
    ids=["one frame", "four channels", "floats", "no frames", "no pixels"],
)
def test_frames_of_another_form_are_refused(frames: np.ndarray, contract: Contract) -> None:
    with pytest.raises(InvalidRequestError, match=r"uint8 of shape \[frames, height, width, 3\]"):
        _request.sample_frames(frames, None, contract)


@pytest.mark.parametrize("channels", [1, 3])
def test_other_frames_than_flow_are_refused_for_a_model_of_flow(
    channels: int, contract: Contract
) -> None:
    flow = dataclasses.replace(contract, channels=2)
    frames = np.zeros((5, 72, 96, channels), np.uint8)
    with pytest.raises(InvalidRequestError, match=r"\[frames, height, width, 2\]") as caught:
        _request.sample_frames(frames, None, flow)
    assert "flow images, x and y last" in caught.value.hint


def test_a_plan_of_ones_own_decoder_gives_the_same_request(contract: Contract) -> None:
    frames = moving_shapes(60)
    chosen = plan(60, None, contract)
    own = _request.take_sampled(frames[chosen.frame_numbers], chosen.frame_index, contract)
    ours = _request.sample_frames(frames, None, contract)
    assert np.array_equal(own.frames, ours.frames)
    assert np.array_equal(own.frame_index, ours.frame_index)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (np.arange(7), "8 integers"),
        (np.zeros(8), "8 integers"),
        (np.arange(8) - 1, "from -1 to 6"),
        (np.arange(8) + 1, "from 1 to 8"),
        (np.full(8, 2**32), "from 4294967296"),
    ],
    ids=["too few", "floats", "negative", "too large", "beyond int32"],
)
def test_an_index_that_does_not_fit_is_refused(
    index: np.ndarray, words: str, contract: Contract
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        _request.take_sampled(noise(8, 48, 64), index, contract)


# Packing.


def test_the_time_of_a_request_is_counted_once_and_where_it_went(contract: Contract) -> None:
    sampled = SampledFrames(
        frames=noise(3, 4, 5), frame_index=np.array([0, 2, 1, 1], np.int32), resize_ms=20.0
    )

    def sample(_: Contract) -> SampledFrames:
        time.sleep(0.05)
        return sampled

    started = time.perf_counter()
    request = _request.prepare(sample, contract, "moves")
    whole_ms = (time.perf_counter() - started) * 1e3
    assert request.resize_ms == 20
    assert request.decode_ms >= 30
    assert request.encode_ms > 0
    assert request.timings(exchange_ms=1.0).prepare_ms <= whole_ms
    assert request.wire_bytes == 3 * 4 * 5 * 3 + 4 * 4


@pytest.mark.parametrize("height", [48, 480])
def test_resizing_is_timed_however_the_frames_come(
    height: int, clip: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = transforms.resize

    def slow_resize(frames: np.ndarray, spec: KeepRatioResize) -> np.ndarray:
        time.sleep(0.02)
        return resize(frames, spec)

    monkeypatch.setattr(transforms, "resize", slow_resize)
    frames = noise(60, height, height)
    chosen = plan(60, None, contract)
    both = (
        _request.sample_frames(frames, None, contract),
        _request.take_sampled(frames[chosen.frame_numbers], chosen.frame_index, contract),
    )
    for sampled in both:
        assert (sampled.resize_ms >= 20) == (height > 48)
    of_file = _request.sample_file(clip, contract)  # 96x72, one call for each frame
    assert of_file.resize_ms >= 20 * len(of_file.frames)


def parsed(message: bytes) -> Any:
    return service_pb2.ModelInferRequest.FromString(message)


@pytest.mark.parametrize("rows", [slice(None), slice(None, None, -1)], ids=["in order", "strided"])
def test_the_message_is_what_protobuf_reads_of_the_wire_format(
    rows: slice, contract: Contract
) -> None:
    sampled = SampledFrames(
        frames=noise(3, 40, 50)[rows], frame_index=np.array([0, 2, 1, 1], np.int32)
    )
    message, size = _request.encode(sampled, contract, "moves", "2")
    request = parsed(message)
    assert (request.model_name, request.model_version) == ("moves", "2")
    frames, index = request.inputs
    assert (frames.name, frames.datatype, frames.shape) == ("frames", "UINT8", [3, 40, 50, 3])
    assert (index.name, index.datatype, index.shape) == ("frame_index", "INT32", [4])
    contents = list(request.raw_input_contents)
    assert contents == [sampled.frames.tobytes(), sampled.frame_index.tobytes()]
    assert size == sum(map(len, contents))
    assert request.SerializeToString() == message


def test_frames_as_jpeg_are_a_file_each(contract: Contract) -> None:
    lossy = dataclasses.replace(contract, wire=Jpeg(quality=90))
    sampled = SampledFrames(
        frames=moving_shapes(3, 40, 56), frame_index=np.array([0, 2, 1, 1], np.int32)
    )
    message, size = _request.encode(sampled, lossy, "moves", "")
    request = parsed(message)
    frames, index = request.inputs
    assert (frames.name, frames.datatype, frames.shape) == ("frames_jpeg", "BYTES", [3])
    assert (index.name, index.shape) == ("frame_index", [4])
    content = request.raw_input_contents[0]
    assert size == len(content) + 16
    assert list(deserialize_bytes_tensor(content)) == list(
        jpeg.encode(sampled.frames, Jpeg(quality=90))
    )


def test_without_opencv_a_model_of_jpeg_is_refused_before_anything_is_decoded(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    lossy = dataclasses.replace(contract, wire=Jpeg())
    with pytest.raises(DependencyError, match="frames as JPEG, and OpenCV") as caught:
        _request.prepare(lambda _: pytest.fail("was decoded"), lossy, "moves")
    assert 'pip install "action-export[fast]"' in caught.value.hint


def test_without_opencv_a_model_of_its_frames_is_refused_with_what_to_install(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = encode(tmp_path / "clip.mp4", moving_shapes(9))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DependencyError, match="frames that OpenCV decodes") as caught:
        _request.sample_file(clip, dataclasses.replace(contract, decoder="opencv"))
    assert "action-export[fast]" in caught.value.hint


def test_a_request_beyond_two_gib_is_refused_before_it_is_copied(contract: Contract) -> None:
    # 346 frames of full HD are 2.004 GiB; here they take one byte.
    frames = np.broadcast_to(np.uint8(0), (346, 1080, 1920, 3))
    sampled = SampledFrames(frames=frames, frame_index=np.zeros(8, np.int32))
    with pytest.raises(InvalidRequestError, match=r"346 frames of 1920x1080 are 2\.00 GiB") as seen:
        _request.encode(sampled, contract, "moves", "")
    assert "--num-clips" in seen.value.hint


# What a client must not do to the positions: an encoder that sorts them, or counts in 16 bits,
# passes on long videos whose clips go forward.


@pytest.mark.parametrize(
    ("sampler", "total"),
    [
        # Clips that are longer than the video begin again.
        (SampleFrames(clip_len=8, frame_interval=3), 7),
        # Clips overlap, and each goes back before the end of the one before it.
        (SampleFrames(clip_len=8, frame_interval=3, num_clips=4), 30),
        # The clips of the second half lie between those of the first.
        (SampleFrames(clip_len=1, num_clips=5, twice_sample=True), 60),
        (DenseSampleFrames(clip_len=8, frame_interval=2, num_clips=3), 60),
    ],
    ids=["around the end", "overlapping", "twice", "dense"],
)
def test_positions_are_sent_in_the_order_of_the_model(
    sampler: Sampler, total: int, contract: Contract
) -> None:
    sampled_at = sampling.sample(total, None, sampler)
    assert np.any(np.diff(sampled_at) < 0)
    asked = dataclasses.replace(contract, sampler=sampler)
    frames = noise(total, 48, 48)
    sent = _request.sample_frames(frames, None, asked)
    message, _ = _request.encode(sent, asked, "moves", "")
    pixels, positions = parsed(message).raw_input_contents
    rows = np.frombuffer(pixels, np.uint8).reshape(-1, 48, 48, 3)
    assert np.array_equal(rows[np.frombuffer(positions, "<i4")], frames[sampled_at])


@pytest.mark.parametrize("total", [32_768, 40_000, 70_000, 3_000_000])
def test_frames_of_long_videos_keep_their_numbers(total: int, contract: Contract) -> None:
    """32767 and 65535 are as far as 16 bits count."""
    asked = dataclasses.replace(
        contract, sampler=SampleFrames(clip_len=2, frame_interval=1, num_clips=4)
    )
    chosen = plan(total, None, asked)
    gap = (total - 2) / 3
    starts = [round(gap * clip) for clip in range(4)]
    expected = [start + step for start in starts for step in (0, 1)]
    assert chosen.frame_numbers[chosen.frame_index].tolist() == expected
    assert chosen.frame_numbers[-1] == total - 1


def test_a_clip_of_more_frames_than_16_bits_count_keeps_its_positions(contract: Contract) -> None:
    asked = dataclasses.replace(contract, sampler=SampleFrames(clip_len=70_000))
    rows = plan(70_000, None, asked)
    sent = SampledFrames(frames=noise(1, 1, 1), frame_index=rows.frame_index)
    message, _ = _request.encode(sent, asked, "moves", "")
    positions = np.frombuffer(parsed(message).raw_input_contents[1], "<i4")
    assert np.array_equal(positions, np.arange(70_000))


def test_every_way_to_the_frames_keeps_the_positions(clip: Path, contract: Contract) -> None:
    asked = dataclasses.replace(contract, sampler=SampleFrames(clip_len=4, num_clips=30))
    chosen = plan(60, None, asked)
    assert np.any(np.diff(chosen.frame_index) < 0)
    frames = noise(60, 48, 48)
    ways = (
        _request.sample_file(clip, asked),
        _request.sample_frames(frames, None, asked),
        _request.take_sampled(frames[chosen.frame_numbers], chosen.frame_index, asked),
    )
    for sent in ways:
        assert np.array_equal(sent.frame_index, chosen.frame_index)
