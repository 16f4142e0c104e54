"""`action-client VIDEO...`: classes of video files from a running server, as tables or JSON.

`action-client --health`: whether a model answers, by its exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from action_runtime import terminal
from action_runtime.terminal import plain

from ._options import add_limits, add_proxy, limits_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from . import ActionClientError, Classification, VideoClient
    from ._types import Request

_INTERRUPTED = 130  # what shells report for a process that SIGINT ended
_NEWLINE = "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """One video: its classification, or why there is none."""

    video: str
    found: Classification | ActionClientError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or that of the first error (docs/errors.md)."""
    return terminal.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if bool(options.videos) == options.health:
        parser.error("--health takes no VIDEO" if options.health else "a VIDEO is required")
    # After parsing, so that --help needs neither numpy nor gRPC.
    return _health(options) if options.health else _classify(options)


def _health(options: argparse.Namespace) -> int:
    """0 or 1, as a probe expects it."""
    from . import ActionClientError, VideoClient

    model: str | None = options.model
    failure: ActionClientError | KeyboardInterrupt | None = None
    try:
        model = model or _only_model(options)
        with VideoClient(
            options.url,
            model,
            model_version=options.model_version,
            timeout_s=options.timeout,
            use_proxy=options.proxy,
        ) as client:
            client.check_health()
    except (ActionClientError, KeyboardInterrupt) as exc:
        failure = exc
        _complain(exc)
    if options.json:
        error = None if failure is None else _error_as_json(failure)
        found = {"url": options.url, "model": model, "healthy": failure is None, "error": error}
        print(terminal.as_json(found))
    elif failure is None:
        print(f"{plain(model)} at {plain(options.url)} answers")
    if isinstance(failure, KeyboardInterrupt):
        return _INTERRUPTED
    return 0 if failure is None else 1


def _classify(options: argparse.Namespace) -> int:
    from . import ActionClientError

    outcomes: list[_Outcome] = []
    model: str | None = options.model
    failure: ActionClientError | KeyboardInterrupt | None = None
    try:
        model = model or _only_model(options)
        for outcome in _outcomes(options, model):
            outcomes.append(outcome)
            _show(outcome, options)
    except (ActionClientError, KeyboardInterrupt) as exc:
        failure = exc
        _complain(exc)
    if options.json:
        print(terminal.as_json(_as_json(options.url, model, outcomes, failure)))
    errors = [failure, *(outcome.found for outcome in outcomes)]
    return next((code for code in map(_exit_code, errors) if code), 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="action-client",
        description="Classify video files with a model that action-export published.",
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="a video file")
    parser.add_argument(
        "--health",
        action="store_true",
        help="ask the model about a frame of noise: exit with 0 if it answers rightly, else with 1",
    )
    parser.add_argument(
        "--url",
        default="localhost:8001",
        metavar="HOST:PORT",
        help="Triton's gRPC address (%(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the published model; may be left out where the server has exactly one",
    )
    parser.add_argument(
        "--model-version", default="", metavar="N", help="a version; the server's choice if unset"
    )
    parser.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="classes to show per video (%(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds for each exchange with the server (%(default)s)",
    )
    add_proxy(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="also show where the time went, on stderr"
    )
    add_limits(parser)
    return parser


def _only_model(options: argparse.Namespace) -> str:
    from . import InvalidRequestError, ModelNotFoundError, published_models

    names = published_models(options.url, timeout_s=options.timeout, use_proxy=options.proxy)
    match names:
        case ():
            raise ModelNotFoundError(
                f"{options.url} serves no model that action-export published",
                hint="start the server on a repository that action-export wrote",
            )
        case (name,):
            return name
        case _:
            raise InvalidRequestError(
                f"{options.url} serves {len(names)} published models", hint=_choice(names)
            )


def _choice(names: Sequence[str]) -> str:
    return f"choose one with --model: {', '.join(names)}"


def _outcomes(options: argparse.Namespace, model: str) -> Iterator[_Outcome]:
    """One outcome for each video; raises only what would fail for every one of them."""
    from . import VideoClient
    from ._request import require_codec, require_decoder, require_rgb
    from ._response import check_top_k

    check_top_k(options.top_k)
    with VideoClient(
        options.url,
        model,
        model_version=options.model_version,
        timeout_s=options.timeout,
        use_proxy=options.proxy,
        limits=limits_of(options),
    ) as client:
        require_rgb(client.contract)
        require_codec(client.contract)
        require_decoder(client.contract)
        yield from _overlapping(
            lambda video: _prepared(client, video),
            lambda video, request: _Outcome(
                video=video, found=_answer(client, request, options.top_k)
            ),
            options.videos,
        )


def _overlapping(
    prepare: Callable[[str], Request | ActionClientError],
    exchange: Callable[[str, Request | ActionClientError], _Outcome],
    videos: Sequence[str],
) -> Iterator[_Outcome]:
    """The outcomes in the order of the videos: one is decoded while the one before is on the wire.

    Exchanges go one at a time: the timeout of each is for its own compute. No video is begun before
    the outcome of the last but one was taken, so that the frames of two are held at most.

    An interrupt ends decoding because this thread does it, as only the main one is interrupted. An
    exchange that is under way then ends when the client is closed.
    """
    from concurrent.futures import ThreadPoolExecutor

    wire = ThreadPoolExecutor(1)
    pending: deque[Future[_Outcome]] = deque()
    try:
        for video in videos:
            pending.append(wire.submit(exchange, video, prepare(video)))
            if len(pending) == 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wire.shutdown(wait=False, cancel_futures=True)


def _prepared(client: VideoClient, video: str) -> Request | ActionClientError:
    from . import ActionClientError
    from ._request import prepare, sample_file

    try:
        return prepare(
            lambda contract: sample_file(Path(video), contract, client.limits),
            client.contract,
            client.model,
            client.model_version,
        )
    except ActionClientError as exc:
        return exc


def _answer(
    client: VideoClient, request: Request | ActionClientError, top_k: int
) -> Classification | ActionClientError:
    from . import ActionClientError

    if isinstance(request, ActionClientError):
        return request
    try:
        return client._exchange(request, top_k)
    except ActionClientError as exc:
        return exc


def _show(outcome: _Outcome, options: argparse.Namespace) -> None:
    from . import ActionClientError

    if isinstance(outcome.found, ActionClientError):
        _complain(outcome.found, video=outcome.video)
        return
    if not options.json:
        print(plain(outcome.video), _table(outcome.found), sep="\n", flush=True)
    if options.verbose:
        timings = outcome.found.timings
        print(
            f"{plain(outcome.video)}: {timings.decode_ms:.0f} ms to decode, "
            f"{timings.resize_ms:.0f} ms to resize, {timings.encode_ms:.0f} ms to pack "
            f"{timings.wire_bytes / 2**20:.1f} MiB, {timings.exchange_ms:.0f} ms for the answer",
            file=sys.stderr,
        )


def _table(found: Classification) -> str:
    labels = [plain(prediction.label) for prediction in found.top]
    width = max(map(len, labels))
    return "\n".join(
        f"{rank:4}  {label:<{width}}  {prediction.score:.4f}"
        for rank, (label, prediction) in enumerate(zip(labels, found.top, strict=True), 1)
    )


def _exit_code(result: object) -> int:
    from . import ActionClientError

    if isinstance(result, KeyboardInterrupt):
        return _INTERRUPTED
    return result.exit_code if isinstance(result, ActionClientError) else 0


def _complain(error: ActionClientError | KeyboardInterrupt, video: str = "") -> None:
    described = _error_as_json(error)
    message = described["message"]
    where = f"{video}: " if video and video not in message else ""
    print(f"action-client: {plain(where + message, keep=_NEWLINE)}", file=sys.stderr)
    if described["hint"]:
        print(f"  {plain(described['hint'], keep=_NEWLINE)}", file=sys.stderr)


def _as_json(
    url: str,
    model: str | None,
    outcomes: Sequence[_Outcome],
    failure: ActionClientError | KeyboardInterrupt | None,
) -> dict[str, Any]:
    return {
        "url": url,
        "model": model,
        "error": None if failure is None else _error_as_json(failure),
        "results": [_outcome_as_json(outcome) for outcome in outcomes],
    }


def _outcome_as_json(outcome: _Outcome) -> dict[str, Any]:
    from . import Classification

    if not isinstance(outcome.found, Classification):
        return {"video": outcome.video, "top": None, "error": _error_as_json(outcome.found)}
    return {
        "video": outcome.video,
        "top": [asdict(prediction) for prediction in outcome.found.top],
        "timings": {
            "prepare_ms": outcome.found.timings.prepare_ms,
            **asdict(outcome.found.timings),
        },
        "error": None,
    }


def _error_as_json(error: ActionClientError | KeyboardInterrupt) -> dict[str, Any]:
    if isinstance(error, KeyboardInterrupt):
        message, hint = "interrupted", ""
    else:
        message, hint = error.message, error.hint
    return {
        "kind": type(error).__name__,
        "message": message,
        "hint": hint,
        "exit_code": _exit_code(error),
    }


if __name__ == "__main__":
    sys.exit(main())
