"""Runs the whole job for every config of mmaction2's recognition zoo, each in its own process.

    scripts/zoo                    # whatever has no row of this code yet, in docs/zoo.json
    scripts/zoo tsm swin           # of these families only
    scripts/zoo --again            # also what has a row
    scripts/zoo --precisions       # one config of each family in every precision, and for TensorRT
    scripts/zoo --page             # no config; docs/zoo.md again, which tells how old its rows are

A row is written as soon as its config is done, so a run that is stopped goes on where it was. It
carries a digest of the code that an export runs through: rows of other code are dropped, so that
the table tells of one code only. What failed is tried again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from action_export.config_file import zoo_configs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.zoo import CASES
from zoo_table import table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LIMIT_S = 4 * 3600  # the largest models are slow on one core that other work shares
# What every row depends on, and what of that it does not.
CODE = (
    "tests/support/weights.py",
    "tests/support/zoo_packages.py",
    "tests/support/videos.py",
    "exporter/action_export",
    "model_repository_templates",
    "constraints.txt",
)
ASIDE = ("cli", "serve", "example", "live.py", "errors.py", "__pycache__")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A table: the script that makes a row, where the rows are, and what they depend on.

    code: beside CODE. aside: of CODE, beside ASIDE.
    """

    script: str
    rows: str
    code: tuple[str, ...]
    aside: tuple[str, ...] = ()


ZOO = Kind(
    script="zoo_case.py",
    rows="zoo.json",
    code=("scripts/zoo_case.py",),
    # for graphs that are not float32, and for plans
    aside=("precision.py", "tensorrt.py", "gpu.py", "build_plan.sh.j2"),
)
PRECISIONS = Kind(
    script="precision_case.py",
    rows="precisions.json",
    code=("scripts/precision_case.py", "tests/support/zoo.py"),
)
PAGE = "zoo.md"

Row = dict[str, Any]


class Rows:
    """The rows of one code by config, written to docs/ again after each that is added.

    There is one writer, see alone(). codes: the digest of each family's code.
    """

    def __init__(self, kind: Kind, codes: Mapping[str, str]) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        known = read_rows(kind)
        self._rows: dict[str, Row] = {
            row["config"]: row for row in known if row["code"] == codes.get(row["family"])
        }

    def proved(self, config: str) -> bool:
        return self._rows.get(config, {}).get("verdict") == "proved"

    def add(self, row: Row) -> None:
        with self._lock:
            self._rows[row["config"]] = row
            rows = sorted(self._rows.values(), key=lambda row: (row["family"], row["config"]))
            _replace(DOCS / self._kind.rows, json.dumps(rows, indent=1) + "\n")
            write_page()


def read_rows(kind: Kind) -> list[Row]:
    path = DOCS / kind.rows
    rows: list[Row] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return rows


def page() -> str:
    """docs/zoo.md, which tells of each row whether the code is still the one that made it."""
    rows = []
    for kind in (ZOO, PRECISIONS):
        codes = digests(kind, folders_of(kind).values())
        rows.append(
            [{**row, "older": row["code"] != codes.get(row["family"])} for row in read_rows(kind)]
        )
    return table(*rows)


def write_page() -> None:
    _replace(DOCS / PAGE, page())


def digests(kind: Kind, families: Iterable[str]) -> dict[str, str]:
    """Of the code that the rows of each family depend on; families/NAME.py is of NAME's alone."""
    named, aside = set(families), {*ASIDE, *kind.aside}
    content = {family: hashlib.sha256() for family in named}
    for name in (*kind.code, *CODE):
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and not set(path.relative_to(ROOT).parts) & aside:
                alone = path.parent.name == "families" and path.stem in named
                for family in {path.stem} if alone else named:
                    content[family].update(path.read_bytes())
    return {family: digest.hexdigest()[:12] for family, digest in content.items()}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Ends this run where another one writes the rows in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"zoo: another run writes to {folder}; wait for it, or stop it")
    else:
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, because a run may be stopped at any time."""
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def folders_of(kind: Kind) -> dict[str, str]:
    """The configs of a table, each with its folder in the zoo."""
    if kind is PRECISIONS:
        return {case.config: case.family for case in CASES}
    return {
        name: path.relative_to(_recognition(path)).parts[0] for name, path in zoo_configs().items()
    }


def wanted(
    families: Iterable[str], folders: Mapping[str, str], rows: Rows, *, again: bool
) -> list[tuple[str, str]]:
    """(family, config) of the zoo."""
    unknown = set(families) - set(folders.values())
    if unknown:
        known = ", ".join(sorted(set(folders.values())))
        sys.exit(f"zoo: no family {', '.join(sorted(unknown))}; there are {known}")
    todo = [
        (family, name)
        for name, family in folders.items()
        if (not families or family in families) and (again or not rows.proved(name))
    ]
    # the large ones last: a run that is stopped has then told of most
    return sorted(todo, key=lambda entry: ("large" in entry[1], entry))


def _recognition(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "recognition")


class Jobs:
    """Runs each config in a process of its own: its memory can be told and cannot pile up."""

    def __init__(self, kind: Kind, codes: Mapping[str, str], threads: int) -> None:
        self._kind = kind
        self._codes = codes
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))),
        }
        self._processes: set[subprocess.Popen[str]] = set()

    def run(self, family: str, config: str) -> Row:
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="action-export-zoo-") as folder:
                verdict = self._verdict(
                    [sys.executable, str(ROOT / "scripts" / self._kind.script), config, folder]
                )
        # one config without room or memory must not cost the others their rows
        except OSError as exc:
            verdict = {"verdict": f"not run: {exc}"}
        return {
            "family": family,
            "config": config,
            **verdict,
            "code": self._codes[family],
            "job_seconds": round(time.monotonic() - started, 1),
        }

    def stop(self) -> None:
        """Ends what is running, whose rows are then lost."""
        for process in list(self._processes):
            process.kill()

    def _verdict(self, command: list[str]) -> Row:
        """The row that the process printed last, or why there is none."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, env=self._environment, stdout=pipe, stderr=pipe, text=True
        )
        self._processes.add(process)
        try:
            printed, log = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"verdict": f"not finished after {LIMIT_S} s"}
        finally:
            self._processes.discard(process)
        try:
            row: Row = json.loads(printed.splitlines()[-1])
        except (IndexError, ValueError):
            reason = (log.strip().splitlines() or ["no word"])[-1]
            return {"verdict": f"failed with exit code {process.returncode}: {reason}"}
        return row


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/zoo", description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="folders of the zoo")
    parser.add_argument("--jobs", type=at_least_one, default=1, metavar="N", help="configs at once")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument(
        "--precisions", action="store_true", help="one config of each family in every precision"
    )
    parser.add_argument("--page", action="store_true", help="write docs/zoo.md, and run nothing")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return 0
    kind = PRECISIONS if arguments.precisions else ZOO
    with alone(DOCS):
        folders = folders_of(kind)
        codes = digests(kind, folders.values())
        rows = Rows(kind, codes)
        todo = wanted(arguments.families, folders, rows, again=arguments.again)
        jobs = Jobs(kind, codes, threads=max(1, (os.cpu_count() or 1) // arguments.jobs))
        return run_all(todo, rows, jobs, arguments.jobs)


def run_all(todo: list[tuple[str, str]], rows: Rows, jobs: Jobs, at_once: int) -> int:
    """The exit code, once every config has its row or the run is stopped."""
    console = Console(stderr=True)
    failed = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = ThreadPoolExecutor(at_once)
    with Progress(*columns, console=console) as progress, pool:
        task = progress.add_task("zoo", total=len(todo))
        try:
            futures = [pool.submit(jobs.run, family, config) for family, config in todo]
            for future in as_completed(futures):
                row = future.result()
                rows.add(row)
                failed += row["verdict"] != "proved"
                progress.advance(task)
                progress.console.print(
                    f"{row['config']}: {row['verdict']} ({row['job_seconds']:.0f} s)", markup=False
                )
        except KeyboardInterrupt:
            console.print("zoo: stopped; run it again to go on", markup=False)
            return 130
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            jobs.stop()
    console.print(f"{len(todo) - failed} proved, {failed} not; {DOCS / PAGE}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
