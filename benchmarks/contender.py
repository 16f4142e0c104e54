"""A contender in a process of its own: it answers videos that are named on its standard input.

    python -m benchmarks.contender NAME JSON_ARGS

It prints `{"ready": true}`, and then one line of JSON for each line that it reads, until the end of
its input. A line is the path of a video, or a command:

    {"video": PATH, "how": "frames"}                     what `Contender.ask` knows beside a file
    {"video": PATH, "callers": 4, "requests": 16}        a closed loop, after a warm-up

An answer has `seconds`, `top1`, `scores`, `parts` (seconds by name) and `bytes` (of a request); of
a closed loop `seconds` of the whole and of `each` request, and the `lowest` and the `highest` score
of each class over all its answers. What fails has `error` in their place.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

Reply = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """scores: [classes]. parts: seconds by name, where they are known. sent: bytes of the request.

    seconds: where it is not the whole call that counts.
    """

    scores: NDArray[np.float32]
    parts: Mapping[str, float] = field(default_factory=dict)
    sent: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """how: "file", or what else the contender knows. traced: the answer must tell its parts."""

    video: str
    how: str = "file"
    traced: bool = True


class Contender(Protocol):
    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        """What answers this video, with all that is not timed already done.

        Threads may call it at once.
        """
        ...


Make = Callable[[Mapping[str, Any], ExitStack], Contender]


def main(name: str, arguments: Mapping[str, Any], make: Mapping[str, Make]) -> None:
    out = _own_stdout()
    with ExitStack() as stack:
        answering = _Answering(make[name](arguments, stack))
        _print(out, {"ready": True})
        for line in sys.stdin:
            _print(out, answering.reply(line.strip()))


class _Answering:
    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._prepared: dict[Ask, Callable[[], Answer]] = {}

    def reply(self, line: str) -> Reply:
        command = json.loads(line) if line.startswith("{") else {"video": line}
        try:
            return self._do(command)
        except Exception as exc:  # it is the driver that decides what a failure means
            return {"error": f"{type(exc).__name__}: {exc}"}

    def _do(self, command: Mapping[str, Any]) -> Reply:
        ask = Ask(
            video=command["video"],
            how=command.get("how", "file"),
            traced="callers" not in command,
        )
        if ask not in self._prepared:
            if any(ask.video != other.video for other in self._prepared):
                self._prepared.clear()  # the frames of one video at a time
            self._prepared[ask] = self._contender.prepare(ask)
        run = self._prepared[ask]
        if "callers" in command:
            return closed_loop(run, command["callers"], command["requests"])
        seconds, answer = _timed(run)
        return {
            "seconds": seconds if answer.seconds is None else answer.seconds,
            "top1": int(answer.scores.argmax()) if answer.scores.size else None,
            "scores": [float(score) for score in answer.scores],
            "parts": dict(answer.parts),
            "bytes": answer.sent,
        }


def closed_loop(run: Callable[[], Answer], callers: int, requests: int) -> Reply:
    """Each caller asks again as soon as it is answered, until `requests` are.

    A fixed number over the whole time: counting what ends within a window counts those that were
    already waiting when it began. The warm-up has as many callers, because they decide how large
    the batches are that a server makes of them.
    """
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda _: run(), range(callers)))
        started = time.perf_counter()
        answered = list(pool.map(lambda _: _timed(run), range(requests)))
        seconds = time.perf_counter() - started
    # NaN in one answer is NaN in both
    scores = np.stack([answer.scores for _, answer in answered])
    return {
        "seconds": seconds,
        "each": [each for each, _ in answered],
        "requests": requests,
        "callers": callers,
        "lowest": scores.min(axis=0).tolist(),
        "highest": scores.max(axis=0).tolist(),
    }


def _timed(run: Callable[[], Answer]) -> tuple[float, Answer]:
    started = time.perf_counter()
    answer = run()
    return time.perf_counter() - started, answer


def _own_stdout() -> TextIO:
    """Standard output for the protocol alone; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return out


def _print(out: TextIO, reply: Reply) -> None:
    out.write(json.dumps(reply) + "\n")
    out.flush()


if __name__ == "__main__":
    from benchmarks.contenders import MAKE

    main(sys.argv[1], json.loads(sys.argv[2]), MAKE)
