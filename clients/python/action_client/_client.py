"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from action_runtime.limits import DEFAULT, Limits
from action_runtime.spec import Contract
from numpy.typing import NDArray

from . import _request, _response
from ._errors import NotPublishedError
from ._transport import Connection, Endpoint, check_text
from ._types import Classification, Request, SampledFrames


class VideoClient:
    """Classifies videos with one model that action-export published. Threads may share it.

    Args:
        url: host:port of Triton's gRPC service.
        model: name of the ensemble, as given to `action-export --name`.
        model_version: a version that is loaded; "" leaves the choice to the server.
        timeout_s: for each exchange with the server, its retries included; not for decoding.
        retries: further tries when the server cannot be reached.
        credentials: grpc.ChannelCredentials for TLS; None is plain text.
        use_proxy: go through the proxy that http_proxy names in the environment.
        limits: what a video file may cost before it is refused.

    Raises:
        ActionClientError: every method does, and nothing else that it can foresee; `_errors` has
            the tree.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        model_version: str = "",
        timeout_s: float = 30.0,
        retries: int = 2,
        credentials: Any = None,
        use_proxy: bool = False,
        limits: Limits = DEFAULT,
    ) -> None:
        check_text("model", model)
        check_text("model_version", model_version)
        self.model = model
        self.model_version = model_version
        self.limits = limits
        self._connection = Connection(
            Endpoint(
                url=url,
                timeout_s=timeout_s,
                retries=retries,
                credentials=credentials,
                use_proxy=use_proxy,
            )
        )

    def __enter__(self) -> VideoClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @cached_property
    def contract(self) -> Contract:
        """What the model needs and gives, read from the server once."""
        return _response.contract_of(self._connection.model_config(self.model, self.model_version))

    def classify(self, path: str | Path, top_k: int = 5) -> Classification:
        """Decodes the frames that the model needs from a video file, and classifies them."""
        return self._classify(
            lambda contract: _request.sample_file(Path(path), contract, self.limits), top_k
        )

    def classify_frames(
        self, frames: NDArray[np.uint8], fps: float | None = None, top_k: int = 5
    ) -> Classification:
        """Classifies a video in memory: all its frames in order, uint8 [F, H, W, 3] RGB.

        A model of optical flow takes flow images instead, [F, H, W, 2] with x and y of each.
        fps is its frame rate, which only a model that samples at a fixed rate asks for.
        """
        return self._classify(lambda contract: _request.sample_frames(frames, fps, contract), top_k)

    def classify_sampled(
        self, frames: NDArray[np.uint8], frame_index: NDArray[np.int32], top_k: int = 5
    ) -> Classification:
        """Classifies the frames of a `plan`, which were decoded elsewhere, in the form of
        `classify_frames`.
        """
        return self._classify(
            lambda contract: _request.take_sampled(frames, frame_index, contract), top_k
        )

    def check_health(self) -> None:
        """Whether the model answers a real request rightly: scores of its classes, all numbers.

        Sends one frame of noise, each time another, so that no cache answers. Triton's own health
        calls stay good when the process of the preprocessing has died.

        Raises:
            ActionClientError: it does not, and why.
        """
        self._classify(_request.noise, top_k=1)

    def _classify(self, sample: Callable[[Contract], SampledFrames], top_k: int) -> Classification:
        _response.check_top_k(top_k)
        contract = self.contract
        request = _request.prepare(sample, contract, self.model, self.model_version)
        return self._exchange(request, top_k)

    def _exchange(self, request: Request, top_k: int) -> Classification:
        sent = time.perf_counter()
        result = self._connection.infer(self.model, request.message)
        timings = request.timings(exchange_ms=(time.perf_counter() - sent) * 1e3)
        scores = _response.scores_of(result, self.contract)
        return _response.classification(scores, self.contract, top_k, timings)


def published_models(
    url: str,
    *,
    timeout_s: float = 30.0,
    retries: int = 2,
    credentials: Any = None,
    use_proxy: bool = False,
) -> tuple[str, ...]:
    """Names of the ready models on a server that action-export published, in alphabetical order.

    Raises:
        ActionClientError: the server cannot be reached, or fails.
    """
    connection = Connection(
        Endpoint(
            url=url,
            timeout_s=timeout_s,
            retries=retries,
            credentials=credentials,
            use_proxy=use_proxy,
        )
    )
    try:
        return tuple(name for name in connection.ready_models() if _is_published(connection, name))
    finally:
        connection.close()


def _is_published(connection: Connection, model: str) -> bool:
    try:
        _response.contract_of(connection.model_config(model, ""))
    except NotPublishedError:
        return False
    return True
