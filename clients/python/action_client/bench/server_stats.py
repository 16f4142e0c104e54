"""Where the server spent the time: Triton's statistics, as the difference over a window.

Triton counts for each request of a model how long it waited in the queue and how long the backend
took to fetch inputs, compute, and hand out outputs. Each request of a batch is charged the whole
time of the batch, so a mean over requests is what one request waited for. An ensemble's compute
times are the sums of its steps'; the waits in the queues of the steps are in its total only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._errors import ActionClientError
from .._transport import Connection

Counters = Mapping[str, Counter[str]]
"""Of each model, in the ensemble's order: what Triton has counted since it started."""

_PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one model did within a window; times are means over its requests, in milliseconds.

    requests: answered, and from_cache: those of them that came from the response cache.
    executions: of the backend; one may serve several requests.
    batches: how many executions there were of each batch size.
    total_ms: from the request's arrival to its answer.
    """

    model: str
    requests: int
    failed: int
    from_cache: int
    executions: int
    batches: Mapping[int, int]
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float
    total_ms: float


def models_of(config: Any) -> tuple[str, ...]:
    """The model of a `ModelConfig`, then the steps that it lists if it is an ensemble."""
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    return tuple(dict.fromkeys([config.name, *steps]))


def read(connection: Connection, models: Sequence[str]) -> Counters | ActionClientError:
    """The counters, or why there are none: a server may run without statistics."""
    try:
        return {model: _counters(connection.statistics(model)) for model in models}
    except ActionClientError as exc:
        return exc


def between(before: Counters, after: Counters) -> tuple[Step, ...]:
    """What each model did from one reading to the next."""
    return tuple(_step(model, after[model] - before[model]) for model in before)


def _counters(statistics: Any) -> Counter[str]:
    """All loaded versions together: only the one that is asked counts on."""
    counts = Counter[str]()
    for version in statistics.model_stats:
        counts["executions"] += version.execution_count
        counts["from_cache"] += version.inference_stats.cache_hit.count
        for phase in _PHASES:
            duration = getattr(version.inference_stats, phase)
            counts[f"{phase} count"] += duration.count
            counts[f"{phase} ns"] += duration.ns
        for batch in version.batch_stats:
            counts[f"batch {batch.batch_size}"] += batch.compute_infer.count
    return counts


def _step(model: str, counts: Counter[str]) -> Step:
    def mean_ms(phase: str) -> float:
        return counts[f"{phase} ns"] / max(counts[f"{phase} count"], 1) / 1e6

    sizes = sorted(int(key.split()[1]) for key in counts if key.startswith("batch "))
    return Step(
        model=model,
        requests=counts["success count"],
        failed=counts["fail count"],
        from_cache=counts["from_cache"],
        executions=counts["executions"],
        batches={size: counts[f"batch {size}"] for size in sizes},
        queue_ms=mean_ms("queue"),
        input_ms=mean_ms("compute_input"),
        infer_ms=mean_ms("compute_infer"),
        output_ms=mean_ms("compute_output"),
        total_ms=mean_ms("success"),
    )
