"""A stand-in for NVIDIA's perf_analyzer, for which many machines' glibc is too old.

It takes the arguments that release 2.60 takes, checks the input data, and writes its report in that
release's format: columns, order, microseconds and all.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,"
    "Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,"
    "p90 latency,p95 latency,p99 latency,Avg latency,request/response,response wait"
)
ROW = "14.3751,21,35591,2,86,98239,1458,4,143646,198999,211395,234040,135403,25,135357"
BYTES = {"frames": 1, "frame_index": 4}


def main(arguments: Sequence[str]) -> int:
    flags = [argument for argument in arguments if argument.startswith("-")]
    values = [argument for argument in arguments if not argument.startswith("-")]
    given = dict(zip([f for f in flags if f != "--verbose-csv"], values, strict=True))
    assert "--verbose-csv" in flags
    assert given["-i"] == "grpc"
    assert int(given["--measurement-interval"]) > 0
    assert int(given["--max-trials"]) > 0
    (request,) = json.loads(Path(given["--input-data"]).read_text())["data"]
    for name, size in BYTES.items():
        content = base64.b64decode(request[name]["content"]["b64"], validate=True)
        assert len(content) == math.prod(request[name]["shape"]) * size
    report = given["-f"]
    assert "/" not in report  # it names the steps' reports STEP_vN.REPORT
    Path(report).write_text(f"{HEADER}\n{given['--concurrency-range']},{ROW}\n")
    Path(f"moves_preprocess_v1.{report}").write_text("")
    return 0


def install(folder: Path, body: str = "sys.exit(fake_perf_analyzer.main(sys.argv[1:]))") -> Path:
    """Writes a program `perf_analyzer` into the folder, which is to be put on PATH."""
    program = folder / "perf_analyzer"
    tests = Path(__file__).parents[1]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(tests)!r})\n"
        f"from support import fake_perf_analyzer\n{body}\n"
    )
    program.chmod(0o755)
    return program
