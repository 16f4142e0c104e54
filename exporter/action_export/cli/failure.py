"""How the commands tell a failure: lines for a person, one object for a script."""

from __future__ import annotations

import json
import sys

from action_export.errors import ActionExportError


def report(program: str, exc: ActionExportError, *, as_json: bool) -> int:
    """Prints the error on stderr, and with --json as `{"error": ...}` on stdout; the exit code."""
    print(f"{program}: {exc.message}", file=sys.stderr)
    if exc.hint:
        print(f"  {exc.hint}", file=sys.stderr)
    if as_json:
        error = {
            "kind": type(exc).__name__,
            "message": exc.message,
            "hint": exc.hint,
            "exit_code": exc.exit_code,
        }
        print(json.dumps({"error": error}, ensure_ascii=False))
    return exc.exit_code
