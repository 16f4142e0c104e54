"""What tritonserver's log says about a failed start."""

from __future__ import annotations

import json
import re

# E1123 05:43:28.667465 24228 model_lifecycle.cc:642] "failed to load 'pre' version 1: Internal: .."
_ERROR = re.compile(r"^E\d{4} \S+\s+\d+ (?P<file>\w+)\.cc:\d+\] (?P<text>.*)$")
# [libprotobuf ERROR /tmp/../text_format.cc:337] Error parsing text-format ..: 8:7: ..
_PROTOBUF = re.compile(r"^\[libprotobuf ERROR \S+\] (?P<text>.*)$")
# error: creating server: Internal - failed to load all models
_FATAL = re.compile(r"error: |terminate called|.*error while loading shared libraries")
# A wrong flag is named before, a wrong value after 400 lines of usage.
_BAD_FLAG = re.compile(
    r"^.*: (?P<unknown>unrecognized option .*)|^(?P<value>Bad option: .*\n.*)", re.MULTILINE
)
# Where our own backends raise is of no use to the reader; where a model of theirs does, is.
_OWN_FILE = r"\S*/(?:serve/backends/\w+|backends/(?:onnxruntime|openvino)/model)\.py"
_OWN_TRACE = re.compile(rf"\n\nAt:\n(?:  {_OWN_FILE}\(\d+\): \w+\n?)+$")

_SOURCES = frozenset({"model_lifecycle", "model_repository_manager", "main"})
# What an ensemble says about a model that has said it already.
_CONSEQUENCE = re.compile(r"depends on .* which has no loaded version|not available or ambiguous")


def load_errors(log: str) -> tuple[str, ...]:
    """Why the server would not start, in the log's order, without what merely follows from it.

    Falls back to the errors that name no model, then to the last lines of the log.
    """
    if match := _BAD_FLAG.search(log):
        return (match["unknown"] or match["value"],)
    errors = [text for line in log.splitlines() if (text := _error(line))]
    causes = [text for text in errors if not _CONSEQUENCE.search(text)]
    fatal = [line for line in log.splitlines() if _FATAL.match(line)]
    return tuple(dict.fromkeys(causes or errors or fatal or last_lines(log)))


def last_lines(log: str, count: int = 10) -> tuple[str, ...]:
    """The end of the log, without the tables that it prints."""
    lines = (line.rstrip() for line in log.splitlines())
    return tuple([line for line in lines if line and line[0] not in "+|"][-count:])


def _error(line: str) -> str:
    if match := _PROTOBUF.match(line):
        return match["text"]
    if (match := _ERROR.match(line)) and match["file"] in _SOURCES:
        return _OWN_TRACE.sub("", _unquoted(match["text"])).strip()
    return ""


def _unquoted(text: str) -> str:
    """Since 24.03 the log quotes its messages as JSON strings; before, they are bare."""
    try:
        decoded = json.loads(text)
    except ValueError:
        return text
    return decoded if isinstance(decoded, str) else text
