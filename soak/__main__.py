"""scripts/soak: callers who know the right answers, beside damage, malformed requests and kills.

scripts/soak                 # five minutes; writes docs/reliability.md and docs/reliability.json
scripts/soak --minutes 60    # as long as that
scripts/soak --quick         # a minute; writes nothing in docs
scripts/soak --json OUT.json # writes there, and nothing in docs
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from action_export.dependencies import NO_TELEMETRY

from benchmarks.machine import describe, versions
from soak import results as found
from soak.run import QUICK, full, publish, soak

DOCS = Path(__file__).parent.parent / "docs"


def main() -> int:
    arguments = _parser().parse_args()
    os.environ.setdefault(*NO_TELEMETRY)
    plan = QUICK if arguments.quick else full(arguments.minutes)
    plan = replace(plan, seed=arguments.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        _say("exporting the bundled example, for pixels and for JPEG")
        answers = publish(folder / "repo")
        results = soak(folder / "repo", answers, plan, _say)
    results = replace(results, machine=describe(), versions=versions())
    print(found.page(results).partition("\n\n")[2].partition("descriptors.\n")[2])
    if arguments.json is not None:
        arguments.json.write_text(results.to_json(), "utf-8")
    elif not arguments.quick:
        found.write(results, DOCS)
    violations = list(found.violations(results))
    for violation in violations:
        print(f"scripts/soak: {violation}", file=sys.stderr)
    return 1 if violations else 0


def _say(text: str) -> None:
    print(f"soak: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a minute")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
