"""Signals that end a command: what runs is unwound, and the exit code is the shell's for them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# `timeout` sends its signal twice, and who has pressed Ctrl-C presses it again: the second must not
# cut short the cleaning up after the first.
_SAME_S = 5.0


class Interrupts:
    """Whether such a signal has arrived: a library may swallow the exception, or wrap it."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._at = 0.0

    @property
    def arrived(self) -> bool:
        return self._number is not None

    @property
    def exit_code(self) -> int:
        """Also of a KeyboardInterrupt that no signal has raised."""
        return 128 + (self._number or signal.SIGINT)

    def check(self) -> None:
        """Raises again what may have been swallowed."""
        if self.arrived:
            raise KeyboardInterrupt

    def receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.arrived and now - self._at < _SAME_S:
            return
        self._number, self._at = self._number or number, now
        raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Raises KeyboardInterrupt in the block when a signal asks to end it.

    One that is ignored, as by `nohup`, stays so.
    """
    received = Interrupts()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, received.receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
