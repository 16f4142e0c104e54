"""What a measurement leaves: one `Series` for each contender in each group, and the targets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One contender in one group; the series of a group have their rounds in common.

    section, case, video: the group. callers: requests at once.
    values: one for each round: seconds, and in the section "throughput" requests per second.
    parts: seconds by name, one for each round.
    facts: what is no series: bytes of a request, top1, peaks of memory.
    error: why there are no values.
    """

    section: str
    case: str
    contender: str
    video: str = ""
    callers: int = 1
    values: tuple[float, ...] = ()
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def part(self, name: str) -> float | None:
        values = self.parts.get(name)
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A row of the table of targets.

    spread: the first and third quartile of the rounds. met: None where it was not measured, and
    `why` has the reason. uncertain: of too few rounds, or the target lies within the spread, so
    another run may decide otherwise.
    """

    name: str
    target: str
    value: float | None = None
    met: bool | None = None
    spread: tuple[float, float] | None = None
    rounds: int = 0
    uncertain: bool = False
    unit: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """skipped: what was not measured, and why."""

    quick: bool
    seconds: float
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    series: tuple[Series, ...]
    targets: tuple[Target, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def write(self, path: Path) -> None:
        """One series on each line, so that two files can be compared."""
        values = {"schema": SCHEMA, **asdict(self)}
        rows = ",\n".join("  " + json.dumps(_rounded(row)) for row in values.pop("series"))
        head = json.dumps(values, indent=1).removesuffix("\n}")
        path.write_text(f'{head},\n "series": [\n{rows}\n ]\n}}\n', "utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises ValueError for a file of another schema."""
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if data.pop("schema", None) != SCHEMA:
            raise ValueError(f"{path} is not of schema {SCHEMA}; measure again")
        series = [
            Series(
                **{
                    **row,
                    "values": tuple(row["values"]),
                    "parts": {name: tuple(values) for name, values in row["parts"].items()},
                }
            )
            for row in data["series"]
        ]
        targets = [
            Target(**{**row, "spread": row["spread"] and tuple(row["spread"])})
            for row in data["targets"]
        ]
        return cls(
            **{
                **data,
                "series": tuple(series),
                "targets": tuple(targets),
                "skipped": tuple((what, why) for what, why in data["skipped"]),
            }
        )


def _rounded(value: Any) -> Any:
    """Without what no clock tells."""
    match value:
        case float():
            return round(value, 6)
        case Mapping():
            return {key: _rounded(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
        case _:
            return value


def find(
    series: Sequence[Series],
    *,
    section: str,
    case: str,
    contender: str,
    video: str | None = None,
    callers: int = 1,
) -> Series | None:
    """The series that was measured without an error, or None."""
    for each in series:
        wanted = (each.section, each.case, each.contender, each.callers)
        if wanted != (section, case, contender, callers) or each.error or not each.values:
            continue
        if video is None or each.video == video:
            return each
    return None


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of fewer than three values the least and the largest."""
    if len(values) < 3:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the ranks."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
