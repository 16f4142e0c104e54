"""What every command does with its streams: print any text, and end quietly when nobody reads."""

from __future__ import annotations

import io
import json
import os
import re
import select
import sys
from collections.abc import Callable
from typing import Any

NOBODY_READS = 141
"""Exit status: what shells report for a process that SIGPIPE ended."""

# C0 and C1 controls, which move the cursor, set the title and type answers into the shell; and
# those of Unicode that reorder what is shown, or break its lines (UAX 9, UAX 14).
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def plain(text: object, *, keep: str = "") -> str:
    r"""Text from elsewhere as a terminal may show it: controls become escapes such as \x1b.

    keep: controls that stay, such as the newlines of a text of several lines.
    """
    return _CONTROLS.sub(
        lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], str(text)
    )


def as_json(value: Any, *, indent: int | None = None) -> str:
    """For stdout: text as it is where its encoding has all of Unicode, else as JSON's escapes.

    Those stand for controls in any case, of which JSON itself escapes C0 only.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    text = json.dumps(value, ensure_ascii=not encoding.startswith("utf"), indent=indent)
    # the newlines of the indent are the only ones that are left here
    return _CONTROLS.sub(
        lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text
    )


def run(command: Callable[[], int]) -> int:
    """The exit status of a command; `NOBODY_READS` where what reads its output has ended.

    Characters that the encoding of a stream lacks become escapes: they end no command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = command()
        sys.stdout.flush()
    except BrokenPipeError:
        broken = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
        if not broken:
            raise
        for stream in broken:
            # What is still in its buffer would be complained of at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return NOBODY_READS
    return status


def _is_broken(stream: Any) -> bool:
    """Whether it is a pipe or socket whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(stream, 0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
