"""NVIDIA's perf_analyzer in place of our own callers: the same frames, its way of measuring.

What it takes and writes is in its documents (docs/input_data.md, cli.md, measurements_metrics.md of
triton-inference-server/perf_analyzer) and was checked with release 2.60. It repeats windows until
three agree within 10 %, ten at most, and counts the answers that come within a window.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from action_runtime.spec import Contract

from .._errors import PerfAnalyzerError
from .._types import SampledFrames
from .load import Latency, Level, Load

PROGRAM = "perf_analyzer"

# those that gRPC reads
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")

_TRIALS = 10  # its own default
_REPORT = "perf.csv"
_UNSTABLE = ("Failed to obtain stable measurement", "Please use a larger time window")
"""Its words for windows that disagree, and for one in which no request ended."""
_TIMERS = {"Client Send": "send_ms", "Client Recv": "receive_ms", "Avg latency": "exchange_ms"}
"""Columns that are the client's. What it calls the network has the waits of an ensemble's steps in
it, so the server's share is read from the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """perf_analyzer, and what it is to ask.

    data: the file that `write_data` wrote. use_proxy: leave it the proxies of the environment.
    """

    program: str
    url: str
    model: str
    model_version: str
    data: Path
    use_proxy: bool = False


def find() -> str:
    """Path of the program. Raises PerfAnalyzerError where it is not on PATH."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise PerfAnalyzerError(
            f"{PROGRAM} is not on PATH",
            hint="pip install perf-analyzer (glibc 2.38 or later), run this in the container "
            "nvcr.io/nvidia/tritonserver:YY.MM-py3-sdk, or leave out --perf-analyzer",
        )
    return found


def require_pixels(contract: Contract) -> None:
    """Raises PerfAnalyzerError where the model takes JPEG, which `write_data` does not write."""
    if contract.wire is not None:
        raise PerfAnalyzerError(
            f"the model takes frames as JPEG ({contract.frames_tensor}), and {PROGRAM} is given "
            "pixels only",
            hint="leave out --perf-analyzer",
        )


def write_data(sampled: SampledFrames, folder: Path) -> Path:
    """Writes the tensors of one request as perf_analyzer's input data."""

    def tensor(values: Any) -> dict[str, Any]:
        content = {"b64": base64.b64encode(values.tobytes()).decode()}
        return {"content": content, "shape": list(values.shape)}

    request = {"frames": tensor(sampled.frames), "frame_index": tensor(sampled.frame_index)}
    path = folder / "frames.json"
    path.write_text(json.dumps({"data": [request]}))
    return path


def arguments(tool: Tool, load: Load) -> list[str]:
    version = ["-x", tool.model_version] if tool.model_version else []
    return [
        *(tool.program, "-m", tool.model, *version, "-u", tool.url, "-i", "grpc"),
        *("--input-data", str(tool.data)),
        *("--concurrency-range", str(load.callers)),
        *("--measurement-interval", str(round(load.seconds * 1000))),
        *("--max-trials", str(_TRIALS)),
        *("-f", _REPORT, "--verbose-csv"),
    ]


def measure(tool: Tool, load: Load) -> Level:
    """One level. The report of each goes into the folder of the data.

    Raises:
        PerfAnalyzerError: it failed, did not end, or wrote no report.
    """
    # It puts reports of an ensemble's steps beside its own, whose name it prefixes: so no path.
    folder = tool.data.parent
    report = folder / _REPORT
    report.unlink(missing_ok=True)
    limit_s = 2 * _TRIALS * load.seconds + 60
    output = _run(arguments(tool, load), folder, limit_s, use_proxy=tool.use_proxy)
    # The wrapper that pip installs exits with 0 whatever happens.
    if not report.exists():
        raise _failed("wrote no report", output)
    with report.open(newline="") as rows:
        return parse(list(csv.DictReader(rows)), load.callers)


def parse(rows: Sequence[dict[str, Any]], callers: int) -> Level:
    """From a report, whose times are in microseconds. Raises PerfAnalyzerError."""
    try:
        (row,) = (row for row in rows if int(row["Concurrency"]) == callers)
        return Level(
            callers=callers,
            answers=None,
            throughput=float(row["Inferences/Second"]),
            latency_ms=Latency(
                p50=_ms(row["p50 latency"]),
                p90=_ms(row["p90 latency"]),
                p95=_ms(row["p95 latency"]),
                p99=_ms(row["p99 latency"]),
                mean=_ms(row["Avg latency"]),
            ),
            timers={name: _ms(row[column]) for column, name in _TIMERS.items()},
            failures={},
        )
    except (KeyError, ValueError, TypeError) as exc:
        raise PerfAnalyzerError(
            f"the report of {PROGRAM} cannot be read: {exc!r}",
            hint="release 2.60 is known to work; leave out --perf-analyzer",
        ) from exc


def _ms(microseconds: str) -> float:
    return float(microseconds) / 1e3


def _run(command: Sequence[str], folder: Path, limit_s: float, *, use_proxy: bool) -> str:
    """What it printed."""
    environment = {n: v for n, v in os.environ.items() if use_proxy or n not in _PROXIES}
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise PerfAnalyzerError(
            f"{PROGRAM} did not end within {limit_s:g} s", hint="allow longer windows: --seconds"
        ) from exc
    except OSError as exc:
        raise PerfAnalyzerError(
            f"{command[0]} cannot be started: {exc.strerror}", hint="install it again"
        ) from exc
    if ended.returncode:
        raise _failed(f"failed with exit code {ended.returncode}", ended.stdout)
    return ended.stdout


def _failed(what: str, output: str) -> PerfAnalyzerError:
    unstable = any(words in output for words in _UNSTABLE)
    last = [line.strip() for line in output.splitlines() if line.strip()][-3:]
    return PerfAnalyzerError(
        f"{PROGRAM} {what}: {' / '.join(last) or 'it printed nothing'}",
        hint="longer windows hold more requests and vary less: --seconds"
        if unstable
        else "see to what it says, or leave out --perf-analyzer",
    )
