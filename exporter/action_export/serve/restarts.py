"""Whether a server that died is started again, and after what pause."""

from __future__ import annotations

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 300.0


class Restarts:
    """Counts the restarts in a row: a server that was ready for STEADY_S begins a new row.

    So a repository that can no longer be served, or a caller that kills every server, ends the
    command, and one death a day does not.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_a_row = 0

    def pause_s(self, ready_s: float) -> float | None:
        """Before the next start; None where there is to be none. It doubles within a row.

        ready_s: for how long the server that has died was ready.
        """
        if ready_s >= STEADY_S:
            self.in_a_row = 0
        if self.in_a_row >= self._limit:
            return None
        doubled: float = FIRST_PAUSE_S * 2**self.in_a_row
        self.in_a_row += 1
        return min(LONGEST_PAUSE_S, doubled)
