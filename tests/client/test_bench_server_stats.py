"""Triton's statistics as differences over a window."""

from __future__ import annotations

from collections import Counter

import pytest
from action_client import ServerError
from action_client.bench import server_stats
from tritonclient.grpc import model_config_pb2, service_pb2

MS = 1_000_000


def version(
    name: str, requests: int, queue_ms: int, batches: dict[int, int], cached: int = 0
) -> service_pb2.ModelStatistics:
    """What Triton has counted: each request computed for 10 ms, and 2 in 100 failed."""
    found = service_pb2.ModelStatistics(name=name, execution_count=sum(batches.values()))
    stats = found.inference_stats
    stats.success.count, stats.success.ns = requests, requests * 20 * MS
    stats.fail.count = requests // 50
    stats.queue.count, stats.queue.ns = requests, queue_ms * MS
    stats.compute_infer.count, stats.compute_infer.ns = requests, requests * 10 * MS
    stats.cache_hit.count = cached
    for size, count in batches.items():
        batch = found.batch_stats.add(batch_size=size)
        batch.compute_infer.count = count
    return found


class Connection:
    """Answers with these, one after another."""

    def __init__(self, *answers: list[service_pb2.ModelStatistics] | Exception) -> None:
        self._answers = list(answers)

    def statistics(self, model: str) -> service_pb2.ModelStatisticsResponse:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return service_pb2.ModelStatisticsResponse(model_stats=answer)


def test_only_what_happened_in_between_counts() -> None:
    old = version("m", 50, 7000, {1: 50})  # an old version that is still loaded
    before = [old, version("m", 100, 500, {1: 100})]
    after = [old, version("m", 200, 900, {1: 140, 4: 15}, cached=3)]
    connection = Connection(before, after)
    first, second = (server_stats.read(connection, ["m"]) for _ in range(2))  # type: ignore[arg-type]
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    (step,) = server_stats.between(first, second)
    assert (step.requests, step.failed, step.from_cache) == (100, 2, 3)
    assert (step.executions, dict(step.batches)) == (55, {1: 40, 4: 15})
    assert (step.queue_ms, step.infer_ms, step.total_ms) == (4, 10, 20)
    assert step.output_ms == 0


def test_a_batch_size_that_was_not_run_meanwhile_is_not_shown() -> None:
    (step,) = server_stats.between({"m": Counter({"batch 2": 5})}, {"m": Counter({"batch 2": 5})})
    assert dict(step.batches) == {}


def test_a_server_without_statistics_is_no_failure() -> None:
    refused = ServerError("the server does not support model statistics")
    assert server_stats.read(Connection(refused), ["m"]) is refused  # type: ignore[arg-type]


def test_the_models_are_those_of_the_ensembles_config() -> None:
    config = model_config_pb2.ModelConfig(name="moves")
    for step in ("moves_preprocess", "moves_recognizer"):
        config.ensemble_scheduling.step.add(model_name=step)
    assert server_stats.models_of(config) == ("moves", "moves_preprocess", "moves_recognizer")
    alone = model_config_pb2.ModelConfig(name="alone")
    assert server_stats.models_of(alone) == ("alone",)


def test_a_failed_request_has_no_time() -> None:
    (step,) = server_stats.between({"m": Counter()}, {"m": Counter({"fail count": 2})})
    assert (step.failed, step.total_ms) == (2, 0)


@pytest.mark.parametrize("phase", ["input", "output"])
def test_every_phase_has_its_own_time(phase: str) -> None:
    after = Counter({f"compute_{phase} count": 4, f"compute_{phase} ns": 12 * MS})
    (step,) = server_stats.between({"m": Counter()}, {"m": after})
    assert getattr(step, f"{phase}_ms") == 3
