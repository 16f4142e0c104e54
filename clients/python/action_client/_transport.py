"""The border to gRPC: deadlines, retries, and no foreign exception beyond this file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._errors import (
    ActionClientError,
    ClientClosedError,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerError,
    ServerUnavailableError,
)

if TYPE_CHECKING:
    import grpc

_FIRST_PAUSE_S = 0.2

_INFER = "/inference.GRPCInferenceService/ModelInfer"

# gRPC counts deadlines in nanoseconds from 1970.
_LONGEST_S = 1e9

# gRPC's own limit of a message is 4 MiB. By default it waits a second after a refused connection,
# and every retry within it fails without being tried.
_CHANNEL_ARGS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the server is, and how long and how often to try.

    url: host:port of the gRPC service.
    timeout_s: for one exchange with the server, its retries included.
    retries: further tries after a failed connection. Requests change nothing on the server, so
        asking twice is safe.
    credentials: grpc.ChannelCredentials for TLS; None is plain text.
    use_proxy: go through the proxy of the environment (http_proxy), which gRPC else asks even on
        the way to localhost.
    """

    url: str
    timeout_s: float = 30.0
    retries: int = 2
    credentials: Any = None
    use_proxy: bool = False

    def __post_init__(self) -> None:
        scheme, _, rest = self.url.partition("://")
        if scheme in ("http", "https", "grpc") and rest:
            raise InvalidRequestError(
                f"{self.url!r} is not an address for gRPC",
                hint="write host:port without a scheme, and Triton's gRPC port: localhost:8001",
            )
        check_text("url", self.url)
        if not 0 < self.timeout_s <= _LONGEST_S:
            raise InvalidRequestError(
                f"timeout_s is {self.timeout_s}",
                hint=f"allow more than 0 seconds, and at most {_LONGEST_S:g}",
            )
        if self.retries < 0:
            raise InvalidRequestError(f"retries is {self.retries}", hint="0 is not to retry")


def check_text(name: str, text: str) -> None:
    """Raises InvalidRequestError for what no message of gRPC can hold."""
    if not text.isprintable():
        raise InvalidRequestError(
            f"{name} is {text!a}, which holds characters that no name or address has",
            hint="check how it came here",
        )


class Attempts:
    """One exchange of at most `timeout_s`: what the sync and the async loop share."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint, self._model = endpoint, model
        self._end = time.monotonic() + endpoint.timeout_s
        self._failures = 0

    def time_left_s(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise _deadline_error(self._endpoint)
        return left

    def pause_s(self, exc: grpc.RpcError) -> float:
        """Seconds to wait before the next try; raises this package's error if there is none."""
        error = error_from(exc, self._endpoint, self._model)
        pause = _FIRST_PAUSE_S * (1 << self._failures)
        self._failures += 1
        allowed = self._failures <= self._endpoint.retries
        in_time = time.monotonic() + pause < self._end
        if not (isinstance(error, ServerUnavailableError) and allowed and in_time):
            raise error from exc
        return pause


def error_from(exc: grpc.RpcError, endpoint: Endpoint, model: str) -> ActionClientError:
    """The error of this package that says what a failed call means."""
    reason = str(exc.details() or "no reason given")
    match exc.code().name:
        case "INVALID_ARGUMENT":
            return InvalidRequestError(
                f"the server refused the request: {reason}",
                hint="compare what was sent with the model's contract",
            )
        case "NOT_FOUND":
            return _model_error(reason, endpoint, model)
        # Older servers say UNAVAILABLE of a model that failed to load; 24.10 says NOT_FOUND.
        case "UNAVAILABLE" if "unknown model" in reason:
            return _model_error(reason, endpoint, model)
        case "UNAVAILABLE":
            return ServerUnavailableError(
                f"the server at {endpoint.url} is not available: {reason}",
                hint="is it up, and is this its gRPC port (8001 unless changed)?",
            )
        case "DEADLINE_EXCEEDED":
            return _deadline_error(endpoint)
        case status:
            return ServerError(
                f"the server failed on the request ({status}): {reason}",
                hint="the server's log says more",
            )


def _model_error(reason: str, endpoint: Endpoint, model: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{endpoint.url} does not serve the model {model!r}: {reason}",
        hint="check the name and version, and the server's log for why a model did not load",
    )


def _deadline_error(endpoint: Endpoint) -> DeadlineError:
    return DeadlineError(
        f"no answer from {endpoint.url} within {endpoint.timeout_s:g} s",
        hint="allow more time (timeout_s, --timeout), or see whether the server is overloaded",
    )


class _Calls:
    """The calls of Triton's gRPC service that are made, over one channel of either kind.

    tritonclient's own client is left out for `infer`'s sake: it copies the tensors three times on
    their way to gRPC, where `message` is a ModelInferRequest that is sent as it is.
    """

    def __init__(self, channel: Any) -> None:
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.index = stub.RepositoryIndex
        self.config = stub.ModelConfig
        self.statistics = stub.ModelStatistics
        self.infer = channel.unary_unary(
            _INFER, response_deserializer=service_pb2.ModelInferResponse.FromString
        )


def _open(grpc_or_aio: Any, endpoint: Endpoint) -> Any:
    options = [*_CHANNEL_ARGS, ("grpc.enable_http_proxy", int(endpoint.use_proxy))]
    if endpoint.credentials is None:
        return grpc_or_aio.insecure_channel(endpoint.url, options=options)
    return grpc_or_aio.secure_channel(endpoint.url, endpoint.credentials, options=options)


def _config_request(model: str, version: str) -> Any:
    from tritonclient.grpc import service_pb2

    return service_pb2.ModelConfigRequest(name=model, version=version)


class Connection:
    """Calls to one server that block."""

    def __init__(self, endpoint: Endpoint) -> None:
        import grpc

        self._endpoint = endpoint
        self._channel = _open(grpc, endpoint)
        self._calls = _Calls(self._channel)
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._channel.close()

    def ready_models(self) -> list[str]:
        from tritonclient.grpc import service_pb2

        return _ready(self._call("", self._calls.index, service_pb2.RepositoryIndexRequest()))

    def model_config(self, model: str, version: str) -> Any:
        return self._call(model, self._calls.config, _config_request(model, version)).config

    def infer(self, model: str, message: bytes) -> Any:
        """The ModelInferResponse."""
        return self._call(model, self._calls.infer, message)

    def statistics(self, model: str) -> Any:
        """Triton's counters of every loaded version, as `ModelStatisticsResponse`."""
        from tritonclient.grpc import service_pb2

        request = service_pb2.ModelStatisticsRequest(name=model)
        return self._call(model, self._calls.statistics, request)

    def _call(self, model: str, method: Callable[..., Any], request: Any) -> Any:
        import grpc

        attempts = Attempts(self._endpoint, model)
        while True:
            _check_open(self._closed)
            try:
                return method(request, timeout=attempts.time_left_s())
            except grpc.RpcError as exc:
                _check_open(self._closed, exc)
                time.sleep(attempts.pause_s(exc))
            except ValueError as exc:  # of gRPC, where another thread has closed the channel
                _check_open(self._closed, exc)
                raise


class AsyncConnection:
    """Calls to one server that are awaited. Belongs to the event loop that uses it first."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel: Any = None
        self._opened: _Calls | None = None
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def model_config(self, model: str, version: str) -> Any:
        calls = self._calls
        return (await self._call(model, calls.config, _config_request(model, version))).config

    async def infer(self, model: str, message: bytes) -> Any:
        """The ModelInferResponse."""
        return await self._call(model, self._calls.infer, message)

    @property
    def _calls(self) -> _Calls:
        import grpc.aio

        _check_open(self._closed)
        # Made at the first call: a channel of grpc.aio binds to the loop that is running then.
        if self._opened is None:
            self._channel = _open(grpc.aio, self._endpoint)
            self._opened = _Calls(self._channel)
        return self._opened

    async def _call(self, model: str, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        import grpc.aio

        attempts = Attempts(self._endpoint, model)
        while True:
            _check_open(self._closed)
            try:
                return await method(request, timeout=attempts.time_left_s())
            except grpc.RpcError as exc:
                _check_open(self._closed, exc)
                await asyncio.sleep(attempts.pause_s(exc))
            except (asyncio.CancelledError, grpc.aio.UsageError) as exc:
                # Closing the channel cancels its calls, and so may whoever awaits this one.
                if not _is_cancelled():
                    _check_open(self._closed, exc)
                raise


def _ready(index: Any) -> list[str]:
    return sorted({model.name for model in index.models if model.state == "READY"})


def _check_open(closed: bool, cause: BaseException | None = None) -> None:
    if closed:
        raise ClientClosedError("the client is closed", hint="make a new one") from cause


def _is_cancelled() -> bool:
    """Whether somebody has asked the running task to end; Python 3.10 does not tell."""
    task = asyncio.current_task()
    return bool(task is not None and getattr(task, "cancelling", int)())
