"""The commands of the exporter on a terminal: no text commands it, and any encoding will do."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from action_export.cli.failure import report
from action_export.cli.show import ProgressDisplay
from action_export.errors import LabelsError
from action_export.types import StepEvent

SHOUTING = "\x1b[2Jleft \u202ethgir"


def test_an_error_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report("action-export", LabelsError(f"class 0 is {SHOUTING}\nand more"), as_json=False)
    err = capsys.readouterr().err
    assert err == "action-export: class 0 is \\x1b[2Jleft \\u202ethgir\nand more\n"


def test_a_step_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(quiet=False) as display:
        display.on_step(StepEvent(step="read", result=SHOUTING, seconds=1.0))
    assert "\\x1b[2Jleft \\u202ethgir" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_brackets_of_a_name_are_no_marks_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with ProgressDisplay(quiet=False) as display:
        display.on_step(StepEvent(step="read", result=None, seconds=0.0))
        display.on_step(StepEvent(step="read", result="a[/b].py, [red]x", seconds=1.0))
    assert "a[/b].py, [red]x" in shown.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", ["export", "serve"])
def test_a_narrow_encoding_is_no_bug(command: str, encoding: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "☃")
    given = [missing, missing, "--triton-repo", missing] if command == "export" else [missing]
    ended = subprocess.run(
        [sys.executable, "-m", f"action_export.cli.{command}", *given],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode not in (0, 1)
    assert b"\\u2603" in ended.stderr
    assert b"Traceback" not in ended.stderr
