"""One soak: first damage and malformed requests beside callers, then kills under them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from action_client import VideoClient
from action_export import api, example
from action_export.mmaction_compat import import_mmaction
from action_export.types import ExportRequest
from action_export.wire import bound_of

from soak.callers import (
    TIMEOUT_S,
    Answers,
    ask,
    calling,
    right_requests,
    send_damaged,
    send_malformed,
)
from soak.judge import KINDS, Expected, Tally
from soak.results import Results
from soak.server import ActionServe, Death, action_serve, footprints

RAW, JPEG = "example", "example_jpeg"
RAW_BOUND = 1e-4
WARM_UP_ROUNDS = 3
WARM_UP_S = 120.0
SETTLE_S = 2.0
ANSWERED_AGAIN_S = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of each. seconds: of the steady part at least, and of all kills at most; the first
    round of kills is made in any case."""

    seconds: float
    callers: int
    damaged: int
    malformed: int
    victims: tuple[str, ...]
    seed: int = 0


VICTIMS = (
    f"{RAW}_preprocess",
    "tritonserver",
    f"{RAW}_recognizer",
    f"{JPEG}_preprocess",
    f"{JPEG}_recognizer",
)
QUICK = Plan(seconds=5, callers=4, damaged=20, malformed=120, victims=VICTIMS[:3])


def full(minutes: float) -> Plan:
    return Plan(
        seconds=minutes * 30,
        callers=8,
        damaged=int(150 * minutes),
        malformed=int(600 * minutes),
        victims=VICTIMS,
    )


def publish(folder: Path) -> Answers:
    """Both kinds of the bundled example in one repository, and mmaction2's scores for its clips.

    Neither is proved again here: each answer of the soak is compared with mmaction2's.
    """
    jpeg = None
    for name, wire in ((RAW, "raw"), (JPEG, "jpeg")):
        request = ExportRequest(triton_repo=folder, name=name, wire=wire, proof="graph")  # type: ignore[arg-type]
        jpeg = api.export(request).contract.wire
    import_mmaction()
    from mmaction.apis import inference_recognizer, init_recognizer

    model = init_recognizer(str(example.CONFIG), str(example.CHECKPOINT), device="cpu")
    scores = {
        video: inference_recognizer(model, str(video)).pred_score.numpy() for video in example.CLIPS
    }
    bounds = {RAW: RAW_BOUND, JPEG: bound_of(jpeg)}
    return {
        model: {video: Expected(scores=right, bound=bound) for video, right in scores.items()}
        for model, bound in bounds.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallies:
    """Of what is sent at once."""

    right: Tally = field(default_factory=Tally)
    damaged: Tally = field(default_factory=Tally)
    malformed: Tally = field(default_factory=Tally)


def soak(repository: Path, answers: Answers, plan: Plan, say: Say) -> Results:
    started = time.monotonic()
    with action_serve(repository) as server:
        say("warming up")
        _warm_up(server, answers, plan)
        before = footprints(server)
        say(f"{plan.damaged} damaged files and {plan.malformed} malformed requests")
        steady = _steady(server, answers, plan)
        time.sleep(SETTLE_S)
        after = footprints(server)
        unasked = server.restarts
        say("kills")
        killed = Tally()
        with calling(server.grpc_url, answers, killed, callers=plan.callers):
            deaths = _kills(server, answers, plan, say)
        time.sleep(SETTLE_S)
        return Results(
            seconds=round(time.monotonic() - started),
            callers=plan.callers,
            seed=plan.seed,
            steady=steady.right.counts(),
            damaged=steady.damaged.counts(),
            malformed=steady.malformed.counts(),
            killed=killed.counts(),
            deaths=tuple(deaths),
            restarts_unasked=unasked,
            restarts=server.restarts,
            before=before,
            after=after,
            after_kills=footprints(server),
        )


def _warm_up(server: ActionServe, answers: Answers, plan: Plan) -> None:
    """Until memory has what so many callers need at once, which it keeps."""
    tally = Tally()
    with calling(server.grpc_url, answers, tally, callers=plan.callers):
        wanted = WARM_UP_ROUNDS * sum(map(len, answers.values()))
        deadline = time.monotonic() + WARM_UP_S
        while tally.of(*KINDS) < wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {wanted} answers in {WARM_UP_S} s: {tally.counts()}")
            time.sleep(0.1)
    _steady(server, answers, replace(plan, seconds=0, damaged=5, malformed=50, seed=plan.seed + 1))


def _steady(server: ActionServe, answers: Answers, plan: Plan) -> Tallies:
    url, tallies = server.grpc_url, Tallies()
    videos = list(answers[RAW])
    requests = right_requests(url, dict.fromkeys(answers, videos[0]))
    end = time.monotonic() + plan.seconds
    with (
        calling(url, answers, tallies.right, callers=plan.callers),
        ThreadPoolExecutor(2) as pool,
    ):
        jobs = (
            pool.submit(
                send_malformed,
                url,
                requests,
                tallies.malformed,
                count=plan.malformed,
                seed=plan.seed,
            ),
            pool.submit(
                send_damaged,
                url,
                RAW,
                videos,
                tallies.damaged,
                count=plan.damaged,
                seed=plan.seed,
            ),
        )
        for job in jobs:
            job.result()
        time.sleep(max(0.0, end - time.monotonic()))
    return tallies


def _kills(server: ActionServe, answers: Answers, plan: Plan, say: Say) -> list[Death]:
    """Of each victim once, and then again while there is time."""
    end = time.monotonic() + plan.seconds
    deaths: list[Death] = []
    for number, victim in enumerate(itertools.cycle(plan.victims)):
        if number >= len(plan.victims) and time.monotonic() > end:
            break
        death = server.kill(victim)
        say(f"{victim} killed: {'noticed' if death.noticed else 'NOT NOTICED'}, {death.seconds} s")
        deaths.append(death)
        if not death.noticed:
            break
        _await_right_answers(server, answers)
    return deaths


def _await_right_answers(server: ActionServe, answers: Answers) -> None:
    """One of each model: a server that is ready must answer, as soon as gRPC tries it again."""
    deadline = time.monotonic() + ANSWERED_AGAIN_S
    for model, videos in answers.items():
        video, expected = next(iter(videos.items()))
        with VideoClient(server.grpc_url, model, timeout_s=TIMEOUT_S) as client:
            while (outcome := ask(client, video, expected)).kind != "right":
                if time.monotonic() > deadline or outcome.kind != "typed":
                    raise RuntimeError(f"{model} is served again, and answers {outcome}")
                time.sleep(0.2)
