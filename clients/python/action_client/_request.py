"""From frames to a request: sample, shrink, encode. Pure functions that both clients share."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from action_runtime import decoders, jpeg, sampled, transforms, video, wire
from action_runtime.limits import DEFAULT, Limits
from action_runtime.limits import VideoLimitError as VideoTooLargeError
from action_runtime.sampling import Plan
from action_runtime.spec import Contract
from numpy.typing import NDArray

from ._errors import DependencyError, InvalidRequestError, VideoError, VideoLimitError
from ._types import Frames, Request, SampledFrames

# gRPC refuses messages of 2 GiB. The names and shapes around the tensors take less than this.
_LARGEST_MESSAGE = 2**31 - 1
_ENVELOPE = 4096


def plan(total_frames: int, fps: float | None, contract: Contract) -> Plan:
    """Which frames of a video the model needs: for services that decode by their own means.

    Args:
        total_frames: frames of the video.
        fps: its average frame rate, or None; only a model that samples at a fixed rate needs it.
        contract: the model's; see `VideoClient.contract`.

    Raises:
        InvalidRequestError: no frames, or a frame rate that is needed and missing or no number.
    """
    with _typed():
        return sampled.plan(total_frames, fps, contract)


def require_rgb(contract: Contract) -> None:
    """Raises InvalidRequestError unless the frames of a video file are what the model takes."""
    with _typed():
        sampled.require_rgb(contract)


@contextmanager
def _typed() -> Iterator[None]:
    """Errors of the runtime, which knows no client, as the client's own."""
    try:
        yield
    except VideoTooLargeError as exc:
        raise VideoLimitError(exc.message, limit=exc.limit, hint=exc.hint) from exc
    except video.VideoError as exc:
        raise VideoError(exc.message, hint=exc.hint) from exc
    except sampled.SamplingError as exc:
        raise InvalidRequestError(exc.message, hint=exc.hint) from exc


def require_codec(contract: Contract) -> None:
    """Raises DependencyError where the model takes JPEG, and nothing here encodes it."""
    if contract.wire is None:
        return
    try:
        jpeg.require_codec()
    except transforms.OpenCVMissingError as exc:
        raise DependencyError(
            "the model takes frames as JPEG, and OpenCV, which encodes them, is not installed",
            hint='pip install "action-export[fast]"',
        ) from exc


def require_decoder(contract: Contract) -> None:
    """Raises DependencyError where nothing here decodes as the model's decoder does."""
    try:
        decoders.require(contract.decoder)
    except transforms.OpenCVMissingError as exc:
        raise DependencyError(
            "the model was trained on frames that OpenCV decodes, and OpenCV is not installed",
            hint='pip install "action-export[fast]"',
        ) from exc


def prepare(
    sample: Callable[[Contract], SampledFrames], contract: Contract, model: str, version: str = ""
) -> Request:
    """A request for the frames that `sample` gives, timed.

    Raises:
        ActionClientError: what `require_codec`, `sample` and `encode` raise.
    """
    require_codec(contract)
    started = time.perf_counter()
    sent = sample(contract)
    ready = time.perf_counter()
    message, size = encode(sent, contract, model, version)
    return Request(
        message=message,
        decode_ms=(ready - started) * 1e3 - sent.resize_ms,
        resize_ms=sent.resize_ms,
        encode_ms=(time.perf_counter() - ready) * 1e3,
        wire_bytes=size,
    )


def sample_file(path: Path, contract: Contract, limits: Limits = DEFAULT) -> SampledFrames:
    """Raises VideoError, InvalidRequestError where `require_rgb` and `plan` do, and DependencyError
    where `require_decoder` does.
    """
    require_decoder(contract)
    with _typed():
        return sampled.sample_file(path, contract, limits=limits)


def noise(contract: Contract) -> SampledFrames:
    """One frame that no other request sends, at every position, of the size that the model takes.

    Another each time, because a response cache would answer for a model that has died.
    """
    shape = (1, *contract.frame_size, contract.channels)
    frames = np.frombuffer(os.urandom(math.prod(shape)), np.uint8).reshape(shape)
    return take_sampled(frames, np.zeros(contract.positions, np.int32), contract)


def sample_frames(frames: NDArray[Any], fps: float | None, contract: Contract) -> SampledFrames:
    """From all frames of a video, in order. Raises InvalidRequestError."""
    checked = _check_frames(frames, contract)
    chosen = plan(len(checked), fps, contract)
    return sampled.shrunk(checked[chosen.frame_numbers], chosen.frame_index, contract)


def take_sampled(
    frames: NDArray[Any], frame_index: NDArray[Any], contract: Contract
) -> SampledFrames:
    """From the frames of a `plan` and its index. Raises InvalidRequestError."""
    checked = _check_frames(frames, contract)
    index = _array("frame_index", frame_index)
    if index.shape != (contract.positions,) or not np.issubdtype(index.dtype, np.integer):
        raise InvalidRequestError(
            f"frame_index must be {contract.positions} integers, one for each sampled position; "
            f"got {index.dtype} of shape {list(index.shape)}",
            hint="send the frame_index that plan() gave",
        )
    if index.min() < 0 or index.max() >= len(checked):
        raise InvalidRequestError(
            f"frame_index goes from {index.min()} to {index.max()}, but there are {len(checked)} "
            "frames, counted from 0",
            hint="send the frames of plan().frame_numbers, each once and in that order",
        )
    return sampled.shrunk(checked, index.astype(np.int32), contract)


def encode(sent: SampledFrames, contract: Contract, model: str, version: str) -> tuple[bytes, int]:
    """A serialised ModelInferRequest for a published model, and the bytes of its tensors.

    Raises:
        InvalidRequestError: larger than a gRPC message can be.
    """
    from tritonclient.grpc import service_pb2

    frames, index = wire.pack(sent.frames, contract), sent.frame_index
    contents = (_content(frames), _content(index))
    sizes = [sum(part.nbytes for part in content) for content in contents]
    if sum(sizes) + _ENVELOPE > _LARGEST_MESSAGE:
        count, height, width = sent.frames.shape[:3]
        raise InvalidRequestError(
            f"{count} frames of {width}x{height} are {sum(sizes) / 2**30:.2f} GiB, and a gRPC "
            "message holds less than 2 GiB",
            hint="send smaller frames, or export the model with fewer clips (--num-clips)",
        )
    head = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    kind = "UINT8" if contract.wire is None else "BYTES"
    head.inputs.add(name=contract.frames_tensor, datatype=kind, shape=frames.shape)
    head.inputs.add(name="frame_index", datatype="INT32", shape=index.shape)
    # The fields of a message may follow each other in pieces, and so may the elements of one. This
    # way the tensors are copied once: protobuf would take bytes objects only, and copy them twice.
    pieces: list[Any] = [head.SerializeToString()]
    for content, size in zip(contents, sizes, strict=True):
        pieces += [_RAW_INPUT_CONTENTS, _varint(size), *map(np.ascontiguousarray, content)]
    return b"".join(pieces), sum(sizes)


# Field 7 of a ModelInferRequest, its length first (protobuf.dev, "Encoding").
_RAW_INPUT_CONTENTS = bytes([7 << 3 | 2])


def _content(tensor: NDArray[Any]) -> list[NDArray[Any]]:
    """What is sent of a tensor; of files, before each its length in four bytes, little-endian."""
    if tensor.dtype != np.object_:
        return [tensor]
    parts: list[NDArray[Any]] = []
    for file in tensor:
        parts += [np.array(len(file), "<u4"), np.frombuffer(file, np.uint8)]
    return parts


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _array(name: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as exc:
        raise InvalidRequestError(
            f"{name} is no array: {exc}", hint="give frames of one size: numpy.stack(frames)"
        ) from exc


def _check_frames(frames: NDArray[Any], contract: Contract) -> Frames:
    array = _array("frames", frames)
    fits = array.ndim == 4 and array.shape[-1] == contract.channels and array.size
    if array.dtype != np.uint8 or not fits:
        kind = "flow images, x and y last," if contract.takes_flow else "RGB frames"
        raise InvalidRequestError(
            f"frames must be uint8 of shape [frames, height, width, {contract.channels}] with at "
            f"least one pixel; got {array.dtype} of shape {list(array.shape)}",
            hint=f"stack {kind} along a new first axis: numpy.stack(frames)",
        )
    return array
