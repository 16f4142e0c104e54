"""A gRPC server on loopback that speaks Triton's protocol and computes scores that can be checked.

Its preprocessing is `action_runtime.transforms.make_clips`, so a request that a published model
would refuse is refused here with the same words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from action_runtime import jpeg
from action_runtime.spec import PARAMETER, Contract
from action_runtime.transforms import BadRequestError, make_clips
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor


@dataclass(frozen=True)
class FakeModel:
    """A model of the server. contract None is a model that somebody else put there."""

    contract: Contract | None
    outputs: Sequence[str] = ("scores",)
    text: str | None = None
    """Written in place of the contract."""


@dataclass
class Behaviour:
    """What the server does to the next requests; a test may change it while the server runs.

    failures: status and text for the next requests of any kind, one each.
    infer_failures: the same for inferences only.
    delay_s: before each inference.
    scores: computes the answer, [1, classes], from uint8 clips [1, views, T, h, w, C].
    spoil: changes the ModelInferResponse that is sent.
    """

    failures: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    infer_failures: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    delay_s: float = 0.0
    scores: Callable[[NDArray[np.uint8], Contract], NDArray[np.float32]] | None = None
    spoil: Callable[[Any], None] | None = None


@dataclass
class Received:
    """What came in: calls in order, the tensors of each inference, and how many ran at once."""

    calls: list[str] = field(default_factory=list)
    frames: list[NDArray[Any]] = field(default_factory=list)
    frame_index: list[NDArray[np.int32]] = field(default_factory=list)
    time_left_s: list[float | None] = field(default_factory=list)
    most_at_once: int = 0


@dataclass(frozen=True)
class FakeTriton:
    url: str
    behaviour: Behaviour
    received: Received


def scores_of(clips: NDArray[np.uint8], contract: Contract) -> NDArray[np.float32]:
    """float32 [1, classes] that tell apart clips of different pixels, order or arrangement."""
    values = clips.reshape(-1).astype(np.float64)
    weights = np.cos(np.outer(np.arange(1, contract.classes + 1), np.arange(values.size) * 0.01))
    return (weights @ values / values.size)[None].astype(np.float32)


@contextmanager
def fake_triton(
    models: dict[str, FakeModel], *, port: int = 0, workers: int = 8
) -> Iterator[FakeTriton]:
    """Serves `models` on a free port, or on `port`."""
    server = grpc.server(
        ThreadPoolExecutor(workers),
        options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)],
    )
    servicer = _Servicer(models)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield FakeTriton(f"127.0.0.1:{bound}", servicer.behaviour, servicer.received)
    finally:
        servicer.stopping.set()
        server.stop(grace=None).wait()


def _values(tensor, raw):
    if tensor.datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(tensor.shape)
    types = {"UINT8": np.uint8, "INT32": np.int32}
    return np.frombuffer(raw, types[tensor.datatype]).reshape(tensor.shape)


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, models: dict[str, FakeModel]) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._running = 0
        self.stopping = threading.Event()
        self.behaviour = Behaviour()
        self.received = Received()

    def RepositoryIndex(self, request, context):
        self._note("index", context)
        models = [
            service_pb2.RepositoryIndexResponse.ModelIndex(name=name, version="1", state="READY")
            for name in self._models
        ]
        broken = service_pb2.RepositoryIndexResponse.ModelIndex(
            name="broken", version="1", state="UNAVAILABLE", reason="no such file"
        )
        return service_pb2.RepositoryIndexResponse(models=[*models, broken])

    def ModelConfig(self, request, context):
        self._note(f"config {request.name}", context)
        model = self._find(request.name, context)
        config = model_config_pb2.ModelConfig(name=request.name)
        for output in model.outputs:
            config.output.add(name=output)
        text = model.text or (model.contract and model.contract.to_json())
        if text:
            config.parameters[PARAMETER].string_value = text
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request, context):
        self._note(f"infer {request.model_name}", context)
        with self._lock:
            self._running += 1
            self.received.most_at_once = max(self.received.most_at_once, self._running)
        try:
            return self._infer(request, context)
        finally:
            with self._lock:
                self._running -= 1

    def _infer(self, request, context):
        self.stopping.wait(self.behaviour.delay_s)
        contract = self._find(request.model_name, context).contract
        if self.behaviour.infer_failures:
            context.abort(*self.behaviour.infer_failures.pop(0))
        tensors = {
            tensor.name: _values(tensor, raw)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        sent = tensors[contract.frames_tensor]
        self.received.frames.append(sent)
        self.received.frame_index.append(tensors["frame_index"])
        try:
            frames = sent if contract.wire is None else jpeg.decode(sent, contract)
            clips = make_clips(frames, tensors["frame_index"], contract)
        except BadRequestError as exc:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        scores = (self.behaviour.scores or scores_of)(clips, contract)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="scores", datatype="FP32", shape=scores.shape)
        response.raw_output_contents.append(scores.tobytes())
        if self.behaviour.spoil:
            self.behaviour.spoil(response)
        return response

    def _note(self, call, context):
        self.received.calls.append(call)
        self.received.time_left_s.append(context.time_remaining())
        if self.behaviour.failures:
            context.abort(*self.behaviour.failures.pop(0))

    def _find(self, name, context):
        if name not in self._models:
            text = f"Request for unknown model: '{name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        return self._models[name]
