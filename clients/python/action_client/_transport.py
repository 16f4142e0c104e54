"""The border to gRPC: deadlines, retries, and no foreign exception beyond this file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tritonclient.utils import InferenceServerException

from ._errors import (
    ActionClientError,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerError,
    ServerUnavailableError,
)

_FIRST_PAUSE_S = 0.2

# These replace tritonclient's own, so its message sizes are repeated. By default gRPC waits a
# second after a refused connection, and every retry within it fails without being tried.
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
    """

    url: str
    timeout_s: float = 30.0
    retries: int = 2
    credentials: Any = None

    def __post_init__(self) -> None:
        scheme, _, rest = self.url.partition("://")
        if scheme in ("http", "https", "grpc") and rest:
            raise InvalidRequestError(
                f"{self.url!r} is not an address for gRPC",
                hint="write host:port without a scheme, and Triton's gRPC port: localhost:8001",
            )
        if not self.timeout_s > 0:
            raise InvalidRequestError(
                f"timeout_s is {self.timeout_s}", hint="allow more than 0 seconds"
            )
        if self.retries < 0:
            raise InvalidRequestError(f"retries is {self.retries}", hint="0 is not to retry")


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

    def pause_s(self, exc: InferenceServerException) -> float:
        """Seconds to wait before the next try; raises this package's error if there is none."""
        error = error_from(exc, self._endpoint, self._model)
        pause = _FIRST_PAUSE_S * (1 << self._failures)
        self._failures += 1
        allowed = self._failures <= self._endpoint.retries
        in_time = time.monotonic() + pause < self._end
        if not (isinstance(error, ServerUnavailableError) and allowed and in_time):
            raise error from exc
        return pause


def error_from(exc: InferenceServerException, endpoint: Endpoint, model: str) -> ActionClientError:
    """The error of this package that says what a failed call means."""
    reason = str(exc.message() or "no reason given")
    match str(exc.status()).removeprefix("StatusCode."):
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


class Connection:
    """Calls to one server that block."""

    def __init__(self, endpoint: Endpoint) -> None:
        from tritonclient.grpc import InferenceServerClient

        self._endpoint = endpoint
        self._triton: Any = InferenceServerClient(
            endpoint.url, creds=endpoint.credentials, channel_args=_CHANNEL_ARGS
        )
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._triton.close()

    def ready_models(self) -> list[str]:
        index = self._call("", self._triton.get_model_repository_index)
        return _ready(index)

    def model_config(self, model: str, version: str) -> Any:
        call = self._triton.get_model_config
        return self._call(model, call, model_name=model, model_version=version).config

    def infer(self, model: str, version: str, inputs: list[Any]) -> Any:
        call = self._triton.infer
        return self._call(model, call, model_name=model, model_version=version, inputs=inputs)

    def statistics(self, model: str) -> Any:
        """Triton's counters of every loaded version, as `ModelStatisticsResponse`."""
        return self._call(model, self._triton.get_inference_statistics, model_name=model)

    def _call(self, model: str, method: Callable[..., Any], **arguments: Any) -> Any:
        _check_open(self._closed)
        attempts = Attempts(self._endpoint, model)
        while True:
            try:
                return method(**arguments, client_timeout=attempts.time_left_s())
            except InferenceServerException as exc:
                time.sleep(attempts.pause_s(exc))


class AsyncConnection:
    """Calls to one server that are awaited. Belongs to the event loop that uses it first."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._opened: Any = None
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def model_config(self, model: str, version: str) -> Any:
        call = self._triton.get_model_config
        return (await self._call(model, call, model_name=model, model_version=version)).config

    async def infer(self, model: str, version: str, inputs: list[Any]) -> Any:
        call = self._triton.infer
        return await self._call(model, call, model_name=model, model_version=version, inputs=inputs)

    @property
    def _triton(self) -> Any:
        from tritonclient.grpc.aio import InferenceServerClient

        _check_open(self._closed)
        # Made at the first call: a channel of grpc.aio binds to the loop that is running then.
        if self._opened is None:
            self._opened = InferenceServerClient(
                self._endpoint.url,
                creds=self._endpoint.credentials,
                channel_args=_CHANNEL_ARGS,
            )
        return self._opened

    async def _call(
        self, model: str, method: Callable[..., Awaitable[Any]], **arguments: Any
    ) -> Any:
        attempts = Attempts(self._endpoint, model)
        while True:
            try:
                return await method(**arguments, client_timeout=attempts.time_left_s())
            except InferenceServerException as exc:
                await asyncio.sleep(attempts.pause_s(exc))


def _ready(index: Any) -> list[str]:
    return sorted({model.name for model in index.models if model.state == "READY"})


def _check_open(closed: bool) -> None:
    if closed:
        raise RuntimeError("the client is closed")
