"""`action-bench URL MODEL [VIDEO]`: latency and throughput of your own server, by callers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from action_runtime import terminal
from action_runtime.terminal import plain

from .._options import add_limits, add_proxy, limits_of, seconds, whole

if TYPE_CHECKING:
    from action_runtime.spec import Contract

    from .._client import VideoClient
    from .._errors import ActionClientError
    from .._types import SampledFrames
    from .perf_analyzer import Tool
    from .report import Subject
    from .requests import Target
    from .sweep import Measured, Meter

_INTERRUPTED = 130  # what shells report for a process that SIGINT ended
_NEWLINE = "\n"

EPILOG = """\
Without --include-decode the frames are prepared once, and what is measured is the server and the
way there and back. Each level keeps that many requests in flight: some to warm up, then --seconds
of requests that count. A level with failed requests makes the exit status that of their first
error (docs/errors.md). perf_analyzer has its own rules for how long it measures: windows of
--seconds, until three agree within 10 %, ten at most.
"""


@dataclass(slots=True, kw_only=True)
class _Outcome:
    """What has come of it so far: an interrupt leaves what was measured before."""

    measured: list[Measured]
    subject: Subject | None = None
    failure: ActionClientError | KeyboardInterrupt | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or that of the first error (docs/errors.md)."""
    return terminal.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = _parse(argv)
    # After parsing, so that --help does not wait for gRPC.
    from .._errors import ActionClientError

    outcome = _Outcome(measured=[])
    try:
        _run(options, outcome)
    except (ActionClientError, KeyboardInterrupt) as exc:
        outcome.failure = exc
    _show(options, outcome)
    return _exit_code(outcome)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="action-bench",
        description="Measure a server that serves a model that action-export published.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="Triton's gRPC address, HOST:PORT")
    parser.add_argument("model", metavar="MODEL", help="the published model")
    parser.add_argument(
        "video", metavar="VIDEO", nargs="?", type=Path, help="a video file; one is drawn if unset"
    )
    parser.add_argument(
        "--concurrency",
        type=whole(1),
        nargs="+",
        default=[1, 2, 4, 8, 16],
        metavar="N",
        help="numbers of callers, a level for each (1 2 4 8 16)",
    )
    parser.add_argument(
        "--seconds", type=seconds, default=5.0, metavar="S", help="window of a level (%(default)g)"
    )
    parser.add_argument(
        "--requests",
        type=whole(1),
        default=20,
        metavar="N",
        help="keep a level's window open for so many, ten times --seconds at most (%(default)s)",
    )
    parser.add_argument(
        "--warmup",
        type=whole(1),
        default=2,
        metavar="N",
        help="requests of each caller before the window (%(default)s)",
    )
    parser.add_argument(
        "--include-decode", action="store_true", help="decode VIDEO for each request"
    )
    parser.add_argument(
        "--perf-analyzer",
        action="store_true",
        help="have NVIDIA's perf_analyzer measure, with the same frames",
    )
    parser.add_argument(
        "--model-version", default="", metavar="N", help="a version; the server's choice if unset"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="S", help="for an answer (%(default)g)"
    )
    parser.add_argument(
        "--plot", type=_writable, metavar="FILE.svg", help="draw latency over throughput"
    )
    add_proxy(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_limits(parser)
    options = parser.parse_args(argv)
    if options.include_decode and options.video is None:
        parser.error("--include-decode needs a VIDEO")
    if options.include_decode and options.perf_analyzer:
        parser.error("--perf-analyzer decodes nothing: leave out --include-decode")
    return options


def _writable(text: str) -> Path:
    """Before minutes of measuring, not after."""
    path = Path(text)
    if path.suffix != ".svg":
        raise argparse.ArgumentTypeError(f"{text!r} should end in .svg")
    there = path if path.exists() else path.absolute().parent
    if path.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def _run(options: argparse.Namespace, outcome: _Outcome) -> None:
    from .._transport import Endpoint
    from .load import Load
    from .report import Subject
    from .sweep import connected

    with ExitStack() as stack:
        target = stack.enter_context(
            connected(
                Endpoint(
                    url=options.url,
                    timeout_s=options.timeout,
                    retries=0,
                    use_proxy=options.proxy,
                ),
                options.model,
                options.model_version,
            )
        )
        meter, sent = _meter(options, target, stack)
        outcome.subject = Subject(
            url=options.url,
            model=options.model,
            sent=sent,
            by="perf_analyzer" if options.perf_analyzer else "action-bench",
        )
        for callers in options.concurrency:
            _progress(f"{callers} in flight")
            load = Load(
                callers=callers,
                seconds=options.seconds,
                requests=options.requests,
                warmup=options.warmup,
            )
            outcome.measured.append(meter(load))


def _meter(options: argparse.Namespace, target: Target, stack: ExitStack) -> tuple[Meter, str]:
    """What measures a level, and what it sends, in words.

    Raises:
        ActionClientError: a first request, which this makes, is not answered.
    """
    from .. import _request
    from . import requests
    from .sweep import by_callers, by_perf_analyzer

    if options.include_decode:
        send = requests.decoding(_client(options, stack), options.video)
        send()
        return by_callers(target, send), f"{options.video}, decoded for each request"
    sampled = requests.sampled_from(options.video, target.contract, limits_of(options))
    request = _request.prepare(
        lambda _: sampled, target.contract, target.model, target.model_version
    )
    send = requests.sending(target, request)
    send()
    count, height, width = sampled.frames.shape[:3]
    sent = (
        f"{count} frames of {width}x{height}, {request.wire_bytes / 1e6:.1f} MB, "
        f"of {options.video or 'a drawn clip'}, prepared once"
    )
    if options.perf_analyzer:
        return by_perf_analyzer(target, _tool(options, target.contract, sampled, stack)), sent
    return by_callers(target, send), sent


def _client(options: argparse.Namespace, stack: ExitStack) -> VideoClient:
    from .. import VideoClient

    client = VideoClient(
        options.url,
        options.model,
        model_version=options.model_version,
        timeout_s=options.timeout,
        retries=0,
        use_proxy=options.proxy,
        limits=limits_of(options),
    )
    return stack.enter_context(client)


def _tool(
    options: argparse.Namespace, contract: Contract, sampled: SampledFrames, stack: ExitStack
) -> Tool:
    from .perf_analyzer import Tool, find, require_pixels, write_data

    require_pixels(contract)
    return Tool(
        program=find(),
        url=options.url,
        model=options.model,
        model_version=options.model_version,
        data=write_data(sampled, Path(stack.enter_context(TemporaryDirectory()))),
        use_proxy=options.proxy,
    )


def _show(options: argparse.Namespace, outcome: _Outcome) -> None:
    from . import report

    notes = report.notes(outcome.measured, options.requests)
    if options.json:
        print(terminal.as_json(_as_json(options, outcome, notes)))
    elif outcome.subject and outcome.measured:
        print(plain(report.text(outcome.subject, outcome.measured), keep=_NEWLINE))
    for note in notes:
        _progress(f"note: {note}")
    if options.plot and outcome.subject:
        _draw(options.plot, outcome.subject, outcome.measured)
    for callers, failures in report.failures(outcome.measured):
        _progress(f"{callers}: {failures.count} x {failures.first.message}")
    match outcome.failure:
        case None:
            pass
        case KeyboardInterrupt():
            _progress("interrupted")
        case error:
            _progress(error.message)
            if error.hint:
                print(f"  {plain(error.hint, keep=_NEWLINE)}", file=sys.stderr)


def _draw(path: Path, subject: Subject, measured: Sequence[Measured]) -> None:
    from .._plot import svg
    from .report import chart

    drawing = chart(subject, measured)
    if drawing is not None:
        path.write_text(svg(drawing), encoding="utf-8")


def _as_json(
    options: argparse.Namespace, outcome: _Outcome, notes: Sequence[str]
) -> dict[str, Any]:
    from . import report

    subject = outcome.subject
    match outcome.failure:
        case None:
            error = None
        case KeyboardInterrupt():
            error = {
                "kind": "KeyboardInterrupt",
                "message": "interrupted",
                "hint": "",
                "exit_code": _INTERRUPTED,
            }
        case failure:
            error = report.error_as_json(failure)
    return {
        "url": options.url,
        "model": options.model,
        "model_version": options.model_version,
        "video": None if options.video is None else str(options.video),
        "include_decode": options.include_decode,
        "seconds": options.seconds,
        "requests": options.requests,
        "by": subject and subject.by,
        "sent": subject and subject.sent,
        "levels": report.as_json(outcome.measured),
        "notes": list(notes),
        "error": error,
    }


def _exit_code(outcome: _Outcome) -> int:
    from .report import failures

    match outcome.failure:
        case None:
            first = next((failed.first for _, failed in failures(outcome.measured)), None)
            return 0 if first is None else first.exit_code
        case KeyboardInterrupt():
            return _INTERRUPTED
        case error:
            return error.exit_code


def _progress(text: str) -> None:
    print(f"action-bench: {plain(text, keep=_NEWLINE)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
