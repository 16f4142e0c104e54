"""Callers who know the right answers, and those who send what is damaged or malformed."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from action_client import Classification, VideoClient
from action_client._request import prepare, sample_file
from tritonclient.grpc import service_pb2, service_pb2_grpc

from soak.damage import damaged
from soak.judge import Expected, Outcome, Scores, Tally, outcome_of
from soak.malformed import malformed

TIMEOUT_S = 30.0
DECODING_S = 30.0
LIMIT_S = TIMEOUT_S + DECODING_S
"""What is later than this is a hang: the deadline of an exchange, and as much again to decode."""

PAUSE_S = 0.5
"""Before a caller who got no answer asks again, as one would."""

Answers = Mapping[str, Mapping[Path, Expected]]
"""Of each model, what is right for each video."""


@contextmanager
def calling(url: str, answers: Answers, tally: Tally, *, callers: int) -> Iterator[None]:
    """`callers` threads ask for the block's time, each the models and videos in another order."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_call, args=(url, answers, tally, stop, n), daemon=True)
        for n in range(callers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        deadline = time.monotonic() + LIMIT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                tally.add(Outcome("hang", "a call that did not return"))


def _call(url: str, answers: Answers, tally: Tally, stop: threading.Event, number: int) -> None:
    asked = [(model, video) for model, videos in answers.items() for video in videos]
    clients = {model: VideoClient(url, model, timeout_s=TIMEOUT_S) for model in answers}
    at = number * 7
    while not stop.is_set():
        model, video = asked[at % len(asked)]
        outcome = ask(clients[model], video, answers[model][video])
        tally.add(outcome)
        if outcome.kind != "right":
            stop.wait(PAUSE_S)
        at += 1
    for client in clients.values():
        client.close()


def ask(client: VideoClient, video: Path, expected: Expected) -> Outcome:
    return outcome_of(
        lambda: client.classify(video), lambda a: expected.judge(a.scores), limit_s=LIMIT_S
    )


def send_damaged(
    url: str, model: str, videos: Sequence[Path], tally: Tally, *, count: int, seed: int
) -> None:
    """Each damaged file twice: what is answered must be answered the same."""
    with (
        VideoClient(url, model, timeout_s=TIMEOUT_S) as client,
        tempfile.TemporaryDirectory(prefix="soak-damaged-") as folder,
    ):
        for path in damaged(videos, Path(folder), count=count, seed=seed):
            first: list[Scores] = []
            call, judge = partial(client.classify, path), partial(_same, first)
            for _ in range(2):
                tally.add(outcome_of(call, judge, limit_s=LIMIT_S))


def _same(first: list[Scores], answer: Classification) -> Outcome:
    """Whether it is the first or equals it, but for the last bits, which differ between batches."""
    first.append(answer.scores)
    off = float(np.abs(answer.scores - first[0]).max())
    return Outcome("answered") if off < 1e-4 else Outcome("wrong", "not the same twice")


def right_requests(url: str, videos: Mapping[str, Path]) -> dict[str, Any]:
    """Of each model the request that its client sends for a video."""
    requests = {}
    for model, video in videos.items():
        with VideoClient(url, model, timeout_s=TIMEOUT_S) as client:
            contract = client.contract
        sent = prepare(partial(sample_file, video), contract, model, "")
        requests[model] = service_pb2.ModelInferRequest.FromString(sent.message)
    return requests


def send_malformed(
    url: str, requests: dict[str, Any], tally: Tally, *, count: int, seed: int
) -> None:
    with grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for what, request in malformed(requests, count=count, seed=seed):
            outcome = outcome_of(
                partial(stub.ModelInfer, request, timeout=TIMEOUT_S),
                lambda _: Outcome("answered"),
                limit_s=LIMIT_S,
            )
            if outcome.kind in ("untyped", "hang"):
                outcome = Outcome(outcome.kind, f"{outcome.name} ({what})")
            tally.add(outcome)
