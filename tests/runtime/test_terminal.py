"""Any text can be printed, none of it commands the terminal, and a closed pipe is a quiet end."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from action_runtime import terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("running", "running"),
        ("läuft ☃", "läuft ☃"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b2J \x07 \x7f", r"\x9b2J \x07 \x7f"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202efdp.exe\u2066", r"\u202efdp.exe\u2066"),
        ("one\u2028two", r"one\u2028two"),
    ],
)
def test_controls_are_shown_as_escapes(text: str, shown: str) -> None:
    assert terminal.plain(text) == shown


def test_newlines_may_stay() -> None:
    assert terminal.plain("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def run(body: str, encoding: str = "utf-8", **pipes: object) -> subprocess.Popen[bytes]:
    program = f"import sys\nfrom action_runtime import terminal\n{body}"
    command = [sys.executable, "-X", "utf8=0", "-c", program]
    environment = {"PYTHONIOENCODING": encoding, "PATH": ""}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **pipes
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_narrow_encoding_ends_no_command(encoding: str) -> None:
    body = """
def command():
    print("läuft ☃")
    print("☃", file=sys.stderr)
    return 3
sys.exit(terminal.run(command))
"""
    out, err = (ended := run(body, encoding)).communicate(timeout=60)
    assert ended.returncode == 3
    assert out.decode(encoding).strip() in ("läuft \\u2603", "l\\xe4uft \\u2603")
    assert err == b"\\u2603\n"


def test_json_commands_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    text = "☃ \x1b[2J \x9b2J \x7f \u202e \u2028"
    shown = terminal.as_json([text], indent=1)
    assert terminal.plain(shown, keep="\n") == shown
    assert "☃" in shown
    assert json.loads(shown) == [text]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_json_in_any_encoding(encoding: str) -> None:
    text = "l\xe4uft \u2603 \x1b \udcff"
    body = f"sys.exit(terminal.run(lambda: print(terminal.as_json({text!a}))))"
    out, _ = run(body, encoding).communicate(timeout=60)
    assert json.loads(out.decode(encoding)) == text


def test_who_stops_reading_ends_a_command_without_a_word() -> None:
    body = """
def command():
    sys.stdin.read(1)
    for _ in range(100_000):
        print("many lines")
    return 0
sys.exit(terminal.run(command))
"""
    ended = run(body, stdin=subprocess.PIPE)
    assert ended.stdout is not None
    ended.stdout.close()
    _, err = ended.communicate(b"x", timeout=60)
    assert (ended.returncode, err) == (terminal.NOBODY_READS, b"")


def test_a_broken_pipe_elsewhere_is_no_quiet_end() -> None:
    body = """
def command():
    raise BrokenPipeError("of another file")
sys.exit(terminal.run(command))
"""
    _, err = (ended := run(body)).communicate(timeout=60)
    assert ended.returncode == 1
    assert b"of another file" in err
