"""Runs the whole job for every config of mmaction2's recognition zoo, each in its own process.

    scripts/zoo                    # whatever has no row of this code yet, in docs/zoo.json
    scripts/zoo tsm swin           # of these families only
    scripts/zoo --again            # also what has a row

A row is written as soon as its config is done, so a run that is stopped goes on where it was. It
carries a digest of the code that an export runs through; rows of other code are done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from action_export.source import zoo_configs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).parent))

from zoo_table import table

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "docs" / "zoo.json"
TABLE = ROOT / "docs" / "zoo.md"
LIMIT_S = 3600
# What a row depends on, and what of that it does not.
CODE = ("exporter/action_export", "model_repository_templates/action_runtime", "tests/support")
ASIDE = ("cli", "serve", "example", "live.py", "errors.py", "zoo.py", "encode.py", "disk.py")

Row = dict[str, Any]


class Rows:
    """The rows of docs/zoo.json by config, written again after each that is added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        known = json.loads(path.read_text("utf-8")) if path.exists() else []
        self._rows: dict[str, Row] = {row["config"]: row for row in known}

    def has(self, config: str, code: str) -> bool:
        return config in self._rows and self._rows[config]["code"] == code

    def add(self, row: Row) -> None:
        with self._lock:
            self._rows[row["config"]] = row
            rows = sorted(self._rows.values(), key=lambda row: (row["family"], row["config"]))
            _replace(self._path, json.dumps(rows, indent=1) + "\n")
            _replace(TABLE, table(rows))


def digest() -> str:
    """Of the code that a row depends on."""
    content = hashlib.sha256((ROOT / "scripts" / "zoo_case.py").read_bytes())
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not set(path.relative_to(ROOT / folder).parts) & set(ASIDE):
                content.update(path.read_bytes())
    return content.hexdigest()[:12]


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, because a run may be stopped at any time."""
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def wanted(families: Iterable[str], rows: Rows, code: str, *, again: bool) -> list[tuple[str, str]]:
    """(family, config) of the zoo, the folder of a config being its family."""
    folders = {
        name: path.relative_to(_recognition(path)).parts[0] for name, path in zoo_configs().items()
    }
    unknown = set(families) - set(folders.values())
    if unknown:
        known = ", ".join(sorted(set(folders.values())))
        sys.exit(f"zoo: no family {', '.join(sorted(unknown))}; there are {known}")
    todo = [
        (family, name)
        for name, family in folders.items()
        if (not families or family in families) and (again or not rows.has(name, code))
    ]
    # the large ones last: a run that is stopped has then told of most
    return sorted(todo, key=lambda entry: ("large" in entry[1], entry))


def _recognition(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "recognition")


def run(family: str, config: str, code: str, threads: int) -> Row:
    """One config in a process of its own, so that its memory can be told and cannot pile up."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="action-export-zoo-") as folder:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))),
        }
        command = [sys.executable, str(ROOT / "scripts" / "zoo_case.py"), config, folder]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            verdict = {"verdict": f"not finished after {LIMIT_S} s"}
        else:
            lines = done.stdout.splitlines()
            if done.returncode == 0 and lines:
                verdict = json.loads(lines[-1])
            else:
                reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
                verdict = {"verdict": f"failed with exit code {done.returncode}: {reason}"}
    return {
        "family": family,
        "config": config,
        **verdict,
        "code": code,
        "job_seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/zoo", description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="folders of the zoo")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="configs at once")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    arguments = parser.parse_args()
    rows = Rows(ROWS)
    code = digest()
    todo = wanted(arguments.families, rows, code, again=arguments.again)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    console = Console(stderr=True)
    failed = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    pool = ThreadPoolExecutor(arguments.jobs)
    with Progress(*columns, console=console) as progress, pool:
        task = progress.add_task("zoo", total=len(todo))
        futures = [pool.submit(run, family, config, code, threads) for family, config in todo]
        try:
            for future in as_completed(futures):
                row = future.result()
                rows.add(row)
                failed += row["verdict"] != "proved"
                progress.advance(task)
                progress.console.print(
                    f"{row['config']}: {row['verdict']} ({row['job_seconds']:.0f} s)", markup=False
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            console.print("zoo: stopped; run it again to go on", markup=False)
            return 130
    console.print(f"{len(todo) - failed} proved, {failed} not; {TABLE}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
