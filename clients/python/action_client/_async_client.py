"""The client for asyncio: VideoClient with `await`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from action_runtime.limits import DEFAULT, Limits
from action_runtime.spec import Contract
from numpy.typing import NDArray

from . import _request, _response
from ._transport import AsyncConnection, Endpoint, check_text
from ._types import Classification, SampledFrames


class AsyncVideoClient:
    """See VideoClient. Files are decoded in threads, so the event loop is never held up.

    It belongs to the event loop in which it is used first.
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
        self._connection = AsyncConnection(
            Endpoint(
                url=url,
                timeout_s=timeout_s,
                retries=retries,
                credentials=credentials,
                use_proxy=use_proxy,
            )
        )
        self._contract: Contract | None = None
        self._reading = asyncio.Lock()

    async def __aenter__(self) -> AsyncVideoClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def contract(self) -> Contract:
        """What the model needs and gives, read from the server once."""
        async with self._reading:
            if self._contract is None:
                config = await self._connection.model_config(self.model, self.model_version)
                self._contract = _response.contract_of(config)
            return self._contract

    async def classify(self, path: str | Path, top_k: int = 5) -> Classification:
        """Decodes the frames that the model needs from a video file, and classifies them."""
        return await self._classify(
            lambda contract: _request.sample_file(Path(path), contract, self.limits), top_k
        )

    async def classify_frames(
        self, frames: NDArray[np.uint8], fps: float | None = None, top_k: int = 5
    ) -> Classification:
        """Classifies a video in memory, all its frames in order; see VideoClient."""
        return await self._classify(
            lambda contract: _request.sample_frames(frames, fps, contract), top_k
        )

    async def classify_sampled(
        self, frames: NDArray[np.uint8], frame_index: NDArray[np.int32], top_k: int = 5
    ) -> Classification:
        """Classifies the frames of a `plan`, which were decoded elsewhere; see VideoClient."""
        return await self._classify(
            lambda contract: _request.take_sampled(frames, frame_index, contract), top_k
        )

    async def check_health(self) -> None:
        """Whether the model answers a real request rightly; see VideoClient."""
        await self._classify(_request.noise, top_k=1)

    async def _classify(
        self, sample: Callable[[Contract], SampledFrames], top_k: int
    ) -> Classification:
        _response.check_top_k(top_k)
        contract = await self.contract()
        request = await asyncio.to_thread(
            _request.prepare, sample, contract, self.model, self.model_version
        )
        sent = time.perf_counter()
        result = await self._connection.infer(self.model, request.message)
        timings = request.timings(exchange_ms=(time.perf_counter() - sent) * 1e3)
        scores = _response.scores_of(result, contract)
        return _response.classification(scores, contract, top_k, timings)
