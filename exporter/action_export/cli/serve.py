"""`action-serve REPO`: an embedded tritonserver that runs until it is told to stop."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from action_export.cli.failure import report
from action_export.errors import ActionExportError

if TYPE_CHECKING:
    from action_export.serve import Server, ServerOptions

POLL_S = 0.5

EPILOG = """\
Runs in the foreground until SIGINT or SIGTERM, and then leaves nothing behind. stdout gets the
addresses once every model is ready, stderr the progress. Flags after `--` go to tritonserver:

  action-serve ./repo -- --rate-limit=execution_count

Exit codes: 0 stopped, 11 no model in REPO, 13 no tritonserver, 14 tritonserver did not start.
"""


class Stopped(BaseException):
    """SIGINT or SIGTERM has arrived. No Exception, so that nothing takes it for a failure."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except ActionExportError as exc:
        return report("action-serve", exc, as_json=args.json)


def _run(args: argparse.Namespace) -> int:
    # Around the imports as well: a signal during a slow one is a stop, too.
    with _until_stopped():
        from action_export.serve import serve

        _progress(args, f"starting tritonserver on {args.repo}")
        started = time.monotonic()
        with serve(args.repo, _options(args)) as server:
            _print(_as_json(server) if args.json else _as_text(server))
            _progress(args, f"ready after {time.monotonic() - started:.1f} s; Ctrl-C stops it")
            try:
                _wait(server, follow_log=args.verbose > 0)
            except Stopped:
                _progress(args, "stopping")
                raise
    return 0


@contextmanager
def _until_stopped() -> Iterator[None]:
    """SIGINT and SIGTERM end the block as if it had come to its end."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        # A second signal ends this process at once; the server is cleaned up without us as well.
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        with suppress(Stopped):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(server: Server, *, follow_log: bool) -> None:
    """Returns never: by Stopped, or by ServeError when the server ends by itself."""
    shown = 0
    while True:
        server.check_running()
        if follow_log:
            text = server.log_text(shown)
            text = text[: text.rfind("\n") + 1]  # whole lines, so no character is cut in two
            shown += len(text.encode())
            sys.stderr.write(text)
            sys.stderr.flush()
        time.sleep(POLL_S)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    own, extra = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, extra = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="action-serve",
        description="Serve a model repository with an embedded tritonserver.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s REPO [options] [-- tritonserver flags]",
    )
    add = parser.add_argument
    add("repo", metavar="REPO", type=Path, help="the folder that --triton-repo named")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for name, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        add(
            f"--{name}-port",
            type=int,
            default=port,
            metavar="PORT",
            help="default: %(default)s; 0 picks a free one",
        )
    add("--no-metrics", action="store_true", help="start no metrics service")
    add("--tritonserver", type=Path, metavar="PATH", help="default: on PATH, else in the wheel")
    add("--poll", type=int, metavar="S", help="look for new versions every S seconds")
    add(
        "--timeout", type=float, default=120, metavar="S", help="to be ready (default: %(default)s)"
    )
    add("--json", action="store_true", help="print one JSON object, also on failure")
    add("-v", "--verbose", action="count", default=0, help="show the server's log; -vv: more")
    add("-q", "--quiet", action="store_true", help="no progress")
    args = parser.parse_args(own)
    if args.poll is not None and args.poll < 1:
        parser.error("--poll takes whole seconds, 1 or more")
    args.extra = tuple(extra)
    return args


def _options(args: argparse.Namespace) -> ServerOptions:
    from action_export.serve import ServerOptions

    return ServerOptions(
        host=args.host,
        grpc_port=args.grpc_port,
        http_port=args.http_port,
        metrics_port=args.metrics_port,
        metrics=not args.no_metrics,
        tritonserver=args.tritonserver,
        poll_s=args.poll,
        ready_timeout_s=args.timeout,
        log_verbose=max(0, args.verbose - 1),
        extra_args=args.extra,
    )


def _as_json(server: Server) -> str:
    return json.dumps(
        {
            "error": None,
            "grpc_url": server.grpc_url,
            "http_url": server.http_url,
            "metrics_url": server.metrics_url,
            "pid": server.pid,
            "models": [{"name": each.name, "version": each.version} for each in server.models],
        }
    )


def _as_text(server: Server) -> str:
    models = ", ".join(f"{each.name} (version {each.version})" for each in server.models)
    rows = {
        "gRPC": server.grpc_url,
        "HTTP": server.http_url,
        "metrics": server.metrics_url,
        "models": models,
    }
    return "\n".join(f"{name:8} {value}" for name, value in rows.items() if value)


def _print(text: str) -> None:
    print(text, flush=True)


def _progress(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        sys.stderr.write(f"action-serve: {text}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
