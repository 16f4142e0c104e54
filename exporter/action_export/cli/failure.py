"""How the commands tell a failure: lines for a person, one object for a script."""

from __future__ import annotations

import sys

from action_runtime import terminal
from action_runtime.terminal import plain

from action_export.errors import ActionExportError

_LINES = "\n\t"


def report(program: str, exc: ActionExportError, *, as_json: bool) -> int:
    """Prints the error on stderr, and with --json as `{"error": ...}` on stdout; the exit code."""
    print(f"{program}: {plain(exc.message, keep=_LINES)}", file=sys.stderr)
    if exc.hint:
        print(f"  {plain(exc.hint, keep=_LINES)}", file=sys.stderr)
    if as_json:
        error = {
            "kind": type(exc).__name__,
            "message": exc.message,
            "hint": exc.hint,
            "exit_code": exc.exit_code,
        }
        print(terminal.as_json({"error": error}))
    return exc.exit_code
