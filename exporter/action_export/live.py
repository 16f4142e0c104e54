"""The last part of the proof: the staged repository on a real tritonserver, before it is published.

Frames go in over gRPC, as a client sends them, and every video at once; the scores must be
mmaction2's. Triton must also have run several videos in one batch, which its statistics tell, and
say of the model what was written.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from action_export.errors import DependencyError, ServeError
from action_export.measure import compare_scores, mixed_rows
from action_export.reference import Reference
from action_export.serve import ServerOptions, find_installation, serve
from action_export.staged import Caller, Staged
from action_export.types import Check

_SETTLE_S = 5.0  # from a model's death to the server's end
# Times that requests are sent anew until the server has run several together. Of a recognizer of a
# few milliseconds they met in 45 % of the rounds (two busy cores), and those of a slow one in the
# second at the latest.
_ROUNDS = 30
_NOT_MIXED = (
    f"in {_ROUNDS} rounds the server of the proof ran no two requests in one batch, so what its "
    "dynamic batching makes of several videos is not proved"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of the difference, by where the server runs the recognizer, and what JPEG adds before it."""

    cpu: float
    gpu: float
    wire: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What was compared. notes: what could not be seen."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()


def verify_live(staged: Staged, references: tuple[Reference, ...], bounds: Bounds) -> Live:
    """Serves what is staged, and compares what it says and scores with what it must.

    Raises:
        DependencyError: there is no tritonserver.
        ServeError: it does not load the models, or answers with an error.
        ModelDiedError: the process of a model died, as for want of memory.
        ParityError: it says something else of the model than was written.
    """
    # Once all answers are there, nothing is lost with the server, which takes 2 s to end in order.
    options = ServerOptions(extra_args=staged.server_flags, stop_timeout_s=0)
    with serve(staged.folder, options) as server:
        caller = Caller(url=server.grpc_url, staged=staged)
        try:
            bound = bounds.gpu if caller.runs_on_gpu() else bounds.cpu
            # its request is the first, which takes a server longer than any other
            read = caller.read_back(references[0])
            if staged.tensors.clips.max_batch_size > 1:
                live = _in_batches(caller, references, bound, bounds.wire)
            else:
                live = Live(checks=(_at_once(caller, references, bound + bounds.wire),))
        except ServeError:
            server.check_running(_SETTLE_S)  # a server that has ended says better why
            raise
    return replace(live, checks=(read, *live.checks))


def _at_once(caller: Caller, references: tuple[Reference, ...], bound: float) -> Check:
    # in turn of full size, which leaves all to the server, and as a client sends them
    sends = (caller.staged.frames_of, caller.staged.shrunk_frames_of)
    frames = [sends[number % 2](row) for number, row in enumerate(references)]
    with ThreadPoolExecutor(len(references)) as pool:
        scores = list(pool.map(caller.scores, references, frames))
    return compare_scores(
        f"live server, {len(scores)} at once", list(zip(scores, references, strict=True)), bound
    )


def _in_batches(
    caller: Caller, references: tuple[Reference, ...], bound: float, wire: float
) -> Live:
    """Every video at once, while a batch of several keeps the recognizer busy.

    So they are all waiting when it is free again, and Triton runs them in one batch, of different
    videos as each is sent once. Where it does not, because the recognizer is the faster step, the
    clips of each go to it directly.
    """
    largest = caller.staged.tensors.clips.max_batch_size
    batches: list[tuple[Any, Reference]] = []
    at_once, mixed = None, False
    for number in range(_ROUNDS):
        held = mixed_rows(references, largest if number else min(3, largest))
        before = caller.ran()
        with ThreadPoolExecutor(1 + len(references)) as pool:
            holding = pool.submit(caller.batch, held)
            if at_once is None:
                at_once = _at_once(caller, references, bound + wire)
            else:
                alone = pool.map(lambda row: caller.batch([row])[0], references)
                batches += zip(alone, references, strict=True)
            batches += zip(holding.result(), held, strict=True)
        ran = caller.ran(since=before, rows=len(held) + len(references))
        if mixed := ran.executions - before.executions < 1 + len(references):
            break
    assert at_once is not None
    told = "a batch of several requests ran" if mixed else f"no batch of several, {_ROUNDS} rounds"
    return Live(
        checks=(
            compare_scores(f"live recognizer, batch of {min(3, largest)}", batches, bound),
            replace(at_once, detail=f"{at_once.detail}; {told}"),
        ),
        notes=() if mixed else (_NOT_MIXED,),
    )


def has_official_backends() -> bool:
    """Whether the server of the proof brings backends of its own in place of ours."""
    try:
        return find_installation(None).other_backends
    except DependencyError:
        return False
