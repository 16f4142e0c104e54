"""scripts/bench: measures what is served against what people use today.

scripts/bench                                # twenty minutes; docs/benchmarks.md and its plots
scripts/bench --quick --json out.json        # under five minutes, the targets only
scripts/bench --page FILE.json               # the page again, without measuring
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from action_export.dependencies import NO_TELEMETRY
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import measure, page, plans
from benchmarks.driver import ContenderError
from benchmarks.results import Results, Target
from benchmarks.workspace import Workspace

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def main() -> int:
    arguments = _parser().parse_args()
    os.environ.setdefault(*NO_TELEMETRY)  # of every contender, mmdeploy's too
    if arguments.page is not None:
        page.write(Results.read(arguments.page), DOCS)
        return 0
    try:
        results = _measure(quick=arguments.quick, mmdeploy_python=arguments.mmdeploy_python)
    except ContenderError as exc:
        sys.exit(f"scripts/bench: {exc}")
    if arguments.json is not None:
        results.write(arguments.json)
    if not arguments.quick:
        results.write(DOCS / "benchmarks.json")
        page.write(results, DOCS)
    _print(results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the targets only, in five minutes")
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--page", type=_file, metavar="FILE", help="write docs/benchmarks.md from such a FILE"
    )
    parser.add_argument(
        "--mmdeploy-python",
        type=_executable,
        metavar="PATH",
        help="python of mmdeploy's environment",
    )
    return parser


# Paths are checked before what takes minutes, and made absolute, because contenders run elsewhere;
# links stay, because the python of an environment is one.


def _writable(text: str) -> Path:
    path = Path(text).absolute()
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def _file(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return path


def _executable(text: str) -> Path:
    path = _file(text)
    if not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be run")
    return path


def _measure(*, quick: bool, mmdeploy_python: Path | None) -> Results:
    sys.path.insert(0, str(ROOT / "tests"))
    from support.videos import real_videos

    console = Console(stderr=True)
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="action-export-bench-") as folder,
        console.status("bench") as status,
    ):

        def say(text: str) -> None:
            line = f"{time.perf_counter() - began:5.0f} s  {text}"
            status.update(escape(line))
            console.print(line, markup=False, highlight=False)

        return measure.run(
            plans.quick() if quick else plans.full(),
            Workspace(folder=Path(folder), mmdeploy_python=mmdeploy_python),
            real_videos()[:2],
            quick=quick,
            say=say,
        )


def _print(results: Results) -> None:
    table = Table(title=f"measured in {results.seconds:.0f} s")
    for column in ("figure", "target", "value", "spread", "verdict"):
        table.add_column(column)
    for target in results.targets:
        table.add_row(*map(escape, _row(target)))
    Console().print(table)


def _row(target: Target) -> tuple[str, ...]:
    return (
        target.name,
        target.target,
        page.figure(target, target.value),
        page.spread(target),
        page.verdict(target),
    )


if __name__ == "__main__":
    sys.exit(main())
