"""Each kind of failure has its own exit code, which the docs list, and a next step."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import action_export
import pytest
from action_export import errors
from action_export.errors import ActionExportError, ConfigError, first_line

KINDS = {kind.__name__: kind for kind in ActionExportError.__subclasses__()}
PACKAGE = Path(action_export.__path__[0])


def test_exit_codes_are_each_kinds_own() -> None:
    codes = [kind.exit_code for kind in KINDS.values()]
    assert len(set(codes)) == len(codes)
    # 1 is a bug, 2 a wrong option; from 126 on the shell has meanings of its own
    assert all(3 <= code < 126 for code in codes)


def test_the_tree_in_the_docstring_is_the_classes() -> None:
    drawn = re.findall(r"^[├└]── (\w+) +(\d+)", str(errors.__doc__), re.MULTILINE)
    assert {(name, int(code)) for name, code in drawn} == {
        (name, kind.exit_code) for name, kind in KINDS.items()
    }


def test_an_error_is_its_fact_and_its_next_step() -> None:
    error = ConfigError("the fact", hint="the step")
    assert (error.message, error.hint, str(error)) == ("the fact", "the step", "the fact\nthe step")
    assert str(ConfigError("the fact")) == "the fact"


def raised_errors() -> list[tuple[str, ast.Call]]:
    """Every construction of one of the kinds in the package, with its place."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS
    ]


def test_every_error_that_the_package_raises_has_a_hint() -> None:
    calls = raised_errors()
    assert len(calls) > 40
    without = [place for place, call in calls if not any(k.arg == "hint" for k in call.keywords)]
    assert without == []


def test_every_kind_is_raised_somewhere() -> None:
    used = {call.func.id for _, call in raised_errors() if isinstance(call.func, ast.Name)}
    assert used == set(KINDS)


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (ValueError("one"), "one"),
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n\n one \n"), "one"),
        (ValueError(""), "ValueError"),
        (KeyError("key"), "'key'"),
    ],
)
def test_the_first_line_of_an_exception_says_something(exc: Exception, expected: str) -> None:
    assert first_line(exc) == expected
