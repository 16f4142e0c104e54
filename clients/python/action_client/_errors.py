"""Every failure that a caller can meet, each kind with its own exit code.

ActionClientError
├── VideoError              20   the file is no video, or frames that are needed cannot be decoded
│   └── VideoLimitError     29   the file would cost more than the limits allow
├── InvalidRequestError     21   what was asked does not fit the model, or is too large to send
├── ModelNotFoundError      22   the server has no such model, or it is not ready
├── NotPublishedError       23   the model was not published by action-export
├── ServerUnavailableError  24   nobody answers at the address
├── DeadlineError           25   no answer within timeout_s
├── ServerError             26   the server failed on the request
├── PerfAnalyzerError       27   perf_analyzer is not on PATH, or it failed
├── DependencyError         28   an optional package is missing that the model needs
└── ClientClosedError       30   the client was closed before

The codes start at 20 so that a script that also runs action-export (3 to 15) can tell them apart.
2 is argparse's own (a wrong option), 1 a bug, which prints its traceback, 130 an interrupt, and 141
the end of what read the output. `action-client --health` exits with 0 or 1.
"""

from __future__ import annotations


class ActionClientError(Exception):
    """A fact with the offending value (`message`), and the next step (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class VideoError(ActionClientError):
    """The file is no video, or frames that the model needs cannot be decoded from it."""

    exit_code = 20


class VideoLimitError(VideoError):
    """The file would cost more than the limits allow, or is of a kind that they leave out.

    limit: the field of `Limits` that says so.
    """

    exit_code = 29

    def __init__(self, message: str, *, limit: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.limit = limit


class InvalidRequestError(ActionClientError):
    """What was asked does not fit the model, or is too large to send."""

    exit_code = 21


class ModelNotFoundError(ActionClientError):
    """The server has no such model, or the model is not ready."""

    exit_code = 22


class NotPublishedError(ActionClientError):
    """The model was not published by action-export, so nobody knows what to send it."""

    exit_code = 23


class ServerUnavailableError(ActionClientError):
    """Nobody answers at the address, after the retries that were allowed."""

    exit_code = 24


class DeadlineError(ActionClientError):
    """No answer within the time that was allowed."""

    exit_code = 25


class ServerError(ActionClientError):
    """The server failed on the request, or answered what no published model answers."""

    exit_code = 26


class PerfAnalyzerError(ActionClientError):
    """NVIDIA's perf_analyzer is asked for and is not on PATH, cannot send JPEG, or failed."""

    exit_code = 27


class DependencyError(ActionClientError):
    """An optional package is missing that the model needs."""

    exit_code = 28


class ClientClosedError(ActionClientError, RuntimeError):
    """The client was closed before, or while it was asked."""

    exit_code = 30
