"""A live ensemble under bad requests: each gets INVALID_ARGUMENT and what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from action_export import api
from action_export.serve import Server, ServerOptions, serve
from action_export.types import ExportRequest
from support.videos import decode, real_videos
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repo = tmp_path_factory.mktemp("bad") / "repo"
    api.export(ExportRequest(triton_repo=repo, proof="graph"))
    with serve(repo, ServerOptions(stop_timeout_s=0)) as running:
        yield running


@pytest.fixture(scope="module")
def frames() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return decode(real_videos()[1], 4)


POSITIONS = 16  # of the bundled example: 2 clips of 8 frames


def index(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """`values`, then zeros up to the number of positions."""
    return np.array([*values, *[0] * (POSITIONS - len(values))], np.int32)


BAD = {
    "no frames": (lambda f: f[:0], index(), "at least one frame"),
    "a negative index": (lambda f: f, index(-1), "-1"),
    "an index out of range": (lambda f: f, index(0, 4), "4"),
    "rank 3": (lambda f: f[0], index(), "unexpected shape"),
    "four channels": (lambda f: np.repeat(f, 2, axis=3)[..., :4], index(), "unexpected shape"),
    "too few positions": (lambda f: f, index()[:-1], "unexpected shape"),
    "empty pictures": (lambda f: f[:, :0], index(), "0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_an_invalid_argument_and_says_what_was_expected(
    name: str, server: Server, frames: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    change, frame_index, words = BAD[name]
    with pytest.raises(InferenceServerException) as caught:
        infer(server.grpc_url, change(frames), frame_index)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert words in caught.value.message()


# Triton's core takes the product of each for the number of bytes that are sent with it.
IMPOSSIBLE = {
    "beyond 64 bits": ([8, 2**32, 2**32, 3], 0),
    "none of a size beyond 64 bits": ([0, 2**40, 2**40, 3], 0),
    "half of 64 bits, twice": ([2**62, 2, 2, 3], 0),
    "negative, twice": ([4, -4, -4, 3], 192),
}


@pytest.mark.parametrize("model", ["example", "example_preprocess"])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_shape_that_no_array_can_have_costs_its_own_request_only(
    name: str, model: str, server: Server, frames: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    shape, sent = IMPOSSIBLE[name]
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="frames", datatype="UINT8", shape=shape)
    request.inputs.add(name="frame_index", datatype="INT32", shape=[POSITIONS])
    request.raw_input_contents.extend([bytes(sent), index().tobytes()])
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"no array can have the shape of frames: {shape}" in caught.value.details()
    infer(server.grpc_url, frames, index(0, 1, 2, 3))
    server.check_running()


def test_good_requests_beside_bad_ones_are_answered(
    server: Server, frames: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    alone = infer(server.grpc_url, frames, index(0, 1, 2, 3))

    def request(number: int) -> np.ndarray[Any, np.dtype[np.float32]] | str:
        try:
            bad = number % 2
            return infer(server.grpc_url, frames, index(9) if bad else index(0, 1, 2, 3))
        except InferenceServerException as exc:
            return str(exc.status())

    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(request, range(24)))
    assert answers[1::2] == ["StatusCode.INVALID_ARGUMENT"] * 12
    for answer in answers[::2]:
        np.testing.assert_allclose(answer, alone, atol=1e-5)


def infer(
    url: str,
    frames: np.ndarray[Any, np.dtype[np.uint8]],
    frame_index: np.ndarray[Any, np.dtype[np.int32]],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    inputs = []
    for name, values, dtype in (
        ("frames", np.ascontiguousarray(frames), "UINT8"),
        ("frame_index", frame_index, "INT32"),
    ):
        inputs.append(InferInput(name, values.shape, dtype))
        inputs[-1].set_data_from_numpy(values)
    with InferenceServerClient(url) as client:
        result = client.infer("example", inputs, client_timeout=60)
    scores: np.ndarray[Any, np.dtype[np.float32]] = result.as_numpy("scores")
    return scores
