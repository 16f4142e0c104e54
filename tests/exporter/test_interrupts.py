"""A signal ends an export with the shell's code for it; nothing is published, and nothing left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from action_export import api, live, tracing
from action_export.cli.export import main
from action_export.cli.interrupts import Interrupts, interrupts
from action_export.errors import TracingError
from action_export.staging import beside
from support.tiny import MODEL_3D, PIPELINE_3D, VIDEOS, Tiny, make

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


def export(tiny: Tiny, repo: Path, *more: str) -> int:
    argv = [str(tiny.config_file), str(tiny.checkpoint), "--triton-repo", str(repo), "-q"]
    return main([*argv, "--videos", *map(str, VIDEOS), *more])


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def at(monkeypatch: pytest.MonkeyPatch, target: object, name: str, act: Callable[[], None]) -> None:
    """Acts when the function is called, and then calls it."""
    real = getattr(target, name)

    def acting(*arguments: Any, **named: Any) -> Any:
        act()
        return real(*arguments, **named)

    monkeypatch.setattr(target, name, acting)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_trace_ends_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, number: int
) -> None:
    at(monkeypatch, tracing, "_traced", lambda: send(number))
    before = [signal.getsignal(each) for each in SIGNALS]
    assert export(tiny, tmp_path / "repo", "--proof", "graph") == 128 + number
    assert capfd.readouterr().err == "action-export: interrupted; nothing was published\n"
    assert not list(tmp_path.iterdir())
    assert [signal.getsignal(each) for each in SIGNALS] == before


def swallowed(number: int) -> None:
    """As by a library that takes every exception for its own."""
    try:
        send(number)
        time.sleep(1)
    except KeyboardInterrupt:
        pass


@pytest.mark.parametrize("then", ["goes on", "fails in its own way", "fails as a bug"])
def test_a_signal_that_a_library_swallows_is_heard(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    def act() -> None:
        swallowed(signal.SIGTERM)
        if then != "goes on":
            raise TracingError("no") if then == "fails in its own way" else ZeroDivisionError

    at(monkeypatch, tracing, "_traced", act)
    assert export(tiny, tmp_path / "repo", "--proof", "graph") == 143
    assert not list(tmp_path.iterdir())


def test_a_signal_during_the_live_proof_ends_the_server_too(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []

    def act() -> None:
        served.extend(name for name in command_lines() if str(tmp_path) in name)
        send(signal.SIGTERM)

    at(monkeypatch, live, "_at_once", act)
    assert export(tiny, tmp_path / "repo", "--proof", "server") == 143
    assert any("tritonserver" in name for name in served)
    assert not [name for name in command_lines() if str(tmp_path) in name]
    assert not list(tmp_path.iterdir())


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended meanwhile
    return found


def test_a_signal_while_servers_that_poll_have_their_time_undoes_what_was_published(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "repo"
    assert export(tiny, repo, "--proof", "graph") == 0
    before = {path: path.stat().st_mtime_ns for path in repo.rglob("*") if path.is_file()}
    at(monkeypatch, api, "_settle", lambda: send(signal.SIGINT))
    assert export(tiny, repo, "--proof", "graph") == 130
    assert {p: p.stat().st_mtime_ns for p in repo.rglob("*") if p.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_a_signal_after_the_publication_does_not_deny_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    at(monkeypatch, sys.modules[main.__module__], "print_result", lambda: send(signal.SIGTERM))
    assert export(tiny, tmp_path / "repo", "--proof", "graph") == 143
    assert "tiny version 1 is published" in capfd.readouterr().err
    assert (tmp_path / "repo/tiny/config.pbtxt").is_file()


def test_what_a_killed_export_has_left_is_removed_by_the_next(tiny: Tiny, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    child = os.fork()
    if child == 0:
        with beside(repo) as stage:
            (stage / "graph").write_text("half")
            send(signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert export(tiny, repo, "--dry-run") == 0
    assert [path.name for path in tmp_path.iterdir()] == [left.name]
    assert export(tiny, repo, "--proof", "graph") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


# --- The signals themselves ---------------------------------------------------------------------


def test_the_second_of_a_pair_does_not_cut_short_the_cleaning_up() -> None:
    """`timeout` sends its signal to the process, and then to the group that it is in."""
    cleaned = False
    with interrupts() as stop:
        try:
            send(signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            send(signal.SIGTERM)
            time.sleep(0.01)
            cleaned = True
    assert cleaned
    assert stop.exit_code == 143


def test_a_later_one_is_heard_again_where_the_first_was_swallowed() -> None:
    stop = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT, None)
    stop.receive(signal.SIGINT, None)
    stop._at -= 60
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGTERM, None)
    assert stop.exit_code == 130


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts() as stop:
            send(signal.SIGHUP)
        assert not stop.arrived
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_the_signals_are_left_to_the_main_one() -> None:
    entered: list[bool] = []

    def enter() -> None:
        with interrupts() as stop:
            entered.append(stop.arrived)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [False]
