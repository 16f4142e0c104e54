"""What is kept with a published version."""

from __future__ import annotations

import argparse
import shlex

import pytest
from action_export import manifest
from action_export.cli.export import _parser, _request
from action_export.types import ExportRequest

GIVEN = ["c.py", "w.pth", "--triton-repo", "repo"]
NOT_REPEATED = {
    *("help", "version", "list", "json", "verbose", "quiet"),  # what is printed
    "dry_run",  # publishes nothing, and has no manifest
    "model_version",  # a number that is taken; the same export again is the next version
}
"""Options of which the result of an export does not depend. All others must be in the command."""


def options() -> list[argparse.Action]:
    return [action for action in _parser()._actions if action.dest not in NOT_REPEATED]


def other_than_default(action: argparse.Action) -> list[str]:
    """A value of this option that is not its default, as words of a command line."""
    if action.nargs == 0:
        return []
    if action.choices is not None:
        values = [str(choice) for choice in action.choices if choice != action.default]
        return values[-1:]
    values = ["k.b=1", "k.c=[1,2]"] if action.nargs == "+" else ["80"]
    return values if action.type is None else ["80"] * len(values)


def request_of(words: list[str]) -> ExportRequest:
    return _request(_parser().parse_args(words))


@pytest.mark.parametrize("action", options(), ids=lambda action: action.dest)
def test_the_command_repeats_every_option(action: argparse.Action) -> None:
    value = other_than_default(action)
    words = [*GIVEN, *action.option_strings[-1:], *value]
    if action.dest == "config":
        words = ["d.py", *GIVEN[1:]]
    elif action.dest == "checkpoint":
        words = ["c.py", "v.pth", *GIVEN[2:]]
    request = request_of(words)
    assert request != request_of(GIVEN), "the value that this test gives is the default"
    command, *repeated = shlex.split(manifest.command(request))
    assert command == "action-export"
    assert request_of(repeated) == request


def test_the_command_repeats_all_options_together() -> None:
    words = list(GIVEN)
    for action in options():
        if action.option_strings:
            words += [action.option_strings[-1], *other_than_default(action)]
    request = request_of(words)
    assert request_of(shlex.split(manifest.command(request))[1:]) == request


def test_the_command_quotes_what_a_shell_would_split() -> None:
    request = request_of([*GIVEN, "--labels", "my labels.txt", "--name", "it's"])
    assert request_of(shlex.split(manifest.command(request))[1:]) == request


def test_options_that_are_not_repeated_exist() -> None:
    """So that a renamed one does not stay exempt by its old name."""
    assert {action.dest for action in _parser()._actions} >= NOT_REPEATED
