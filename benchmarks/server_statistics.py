"""Triton's own statistics of a request: the time of each model in queue, input, compute, output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PARTS = {
    "queue": "queue",
    "compute_input": "input",
    "compute_infer": "infer",
    "compute_output": "output",
}


class ServerStatistics:
    """Of the models of one published ensemble."""

    def __init__(self, url: str, ensemble: str) -> None:
        from tritonclient.grpc import InferenceServerClient

        channel = [
            ("grpc.max_send_message_length", 2**31 - 1),
            ("grpc.max_receive_message_length", 2**31 - 1),
            ("grpc.enable_http_proxy", 0),
        ]
        self.client: Any = InferenceServerClient(url, channel_args=channel)
        self._ensemble = ensemble

    def __enter__(self) -> ServerStatistics:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()

    @contextmanager
    def parts(self) -> Iterator[dict[str, float]]:
        """Seconds of one request that is made in the block, there when it ends.

        `ensemble` is the whole; `preprocess_infer`, `recognizer_queue` and so on are of the steps.
        """
        found: dict[str, float] = {}
        before = self._read()
        yield found
        deadline = time.monotonic() + _LATE_S
        after = self._read()
        # Triton counts a step of an ensemble after the answer has left.
        while any(after[name].count == stats.count for name, stats in before.items()):
            if time.monotonic() > deadline:
                raise TimeoutError("Triton's statistics do not count the request")
            time.sleep(_PAUSE_S)
            after = self._read()
        for name, stats in before.items():
            for key, seconds in after[name].seconds.items():
                found[key] = seconds - stats.seconds[key]

    def _read(self) -> dict[str, _Model]:
        return {
            model.name: _Model(
                count=model.inference_stats.success.count + model.inference_stats.fail.count,
                seconds=self._seconds(model),
            )
            for model in self.client.get_inference_statistics().model_stats
            if model.name == self._ensemble or model.name.startswith(f"{self._ensemble}_")
        }

    def _seconds(self, model: Any) -> dict[str, float]:
        step = model.name.removeprefix(self._ensemble).removeprefix("_")
        if not step:
            return {"ensemble": model.inference_stats.success.ns / 1e9}
        return {
            f"{step}_{name}": getattr(model.inference_stats, key).ns / 1e9
            for key, name in PARTS.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """count: requests that were answered, rightly or not. seconds: of all of them, by part."""

    count: int
    seconds: dict[str, float]


_LATE_S = 2.0
_PAUSE_S = 0.001
