"""The client of the ensemble by hand: every sampled frame, at its native size, in one request."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from action_runtime.spec import Contract

from benchmarks.by_hand.write import NAME
from benchmarks.contender import Answer, Ask
from benchmarks.server_statistics import ServerStatistics


class ByHand:
    """Beside a tritonserver that this process starts.

    The frames are found and decoded by our own client, which is quicker than a usual reader, so the
    difference lies in what is sent and done with them. contract: the file that says which they are.
    """

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        from action_export.serve import serve

        self._contract = Contract.from_json(Path(arguments["contract"]).read_text("utf-8"))
        server = stack.enter_context(serve(Path(arguments["repo"])))
        self.url = server.grpc_url
        self._statistics = stack.enter_context(ServerStatistics(server.grpc_url, NAME))

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        return (lambda: self._traced(ask.video)) if ask.traced else lambda: self._ask(ask.video)

    def _traced(self, video: str) -> Answer:
        with self._statistics.parts() as parts:
            answer = self._ask(video)
        parts |= answer.parts
        parts["network"] = parts["exchange"] - parts.pop("ensemble")
        return Answer(scores=answer.scores, parts=parts, sent=answer.sent, seconds=answer.seconds)

    def _ask(self, video: str) -> Answer:
        from tritonclient.grpc import InferInput

        from benchmarks.contenders import native_frames

        started = time.perf_counter()
        distinct, index = native_frames(video, self._contract)
        frames = distinct[index]
        decoded = time.perf_counter()
        tensor = InferInput("frames", frames.shape, "UINT8").set_data_from_numpy(frames)
        encoded = time.perf_counter()
        result = self._statistics.client.infer(NAME, [tensor])
        ended = time.perf_counter()
        return Answer(
            scores=result.as_numpy("scores")[0],
            parts={
                "decode": decoded - started,
                "encode": encoded - decoded,
                "exchange": ended - encoded,
            },
            sent=frames.nbytes,
            seconds=ended - started,
        )
