"""`action-serve REPO`: an embedded tritonserver that runs until it is told to stop."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from action_runtime import terminal
from action_runtime.terminal import plain

from action_export.cli.failure import report
from action_export.errors import ActionExportError, ModelDiedError, ServeError

if TYPE_CHECKING:
    from action_export.serve import Server, ServerOptions

POLL_S = 0.5

EPILOG = """\
Runs in the foreground until SIGINT or SIGTERM, and then leaves nothing behind. stdout gets the
addresses once every model is ready, stderr the progress. Flags after `--` go to tritonserver:

  action-serve ./repo -- --rate-limit=execution_count

Triton does not start the process of a Python model again that has died, and calls the model ready
all the same. Here the server then ends with 17, or is started again: --on-death restart.

Shared memory, log and trace settings are shut, because with them a caller may read and write other
programs' memory. --admin-key-file opens them to callers that send the key in the file's first line,
as the HTTP header action-admin-key or the gRPC metadata triton-grpc-protocol-action-admin-key.
tritonserver takes the key as a flag, where other users of this machine can read it.

Exit codes: 0 stopped, 11 no model in REPO, 13 no tritonserver, 14 tritonserver did not start or has
died, 17 the process of a model has died.
"""


class Stopped(BaseException):
    """SIGINT or SIGTERM has arrived. No Exception, so that nothing takes it for a failure."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(sys.argv[1:] if argv is None else argv)
    return terminal.run(lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except ActionExportError as exc:
        return report("action-serve", exc, as_json=args.json)


def _run(args: argparse.Namespace) -> int:
    # Around the imports as well: a signal during a slow one is a stop, too.
    with _until_stopped():
        from action_export.serve.ports import reserved_ports

        options = _options(args)
        # Held from the first server to the last, so that nobody takes a port between two.
        with reserved_ports(options) as ports:
            options = replace(
                options, grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics
            )
            try:
                _serve(args, options)
            except Stopped:
                _progress(args, "stopping")
                raise
    return 0


def _serve(args: argparse.Namespace, options: ServerOptions) -> None:
    """Returns never: by Stopped, or by the error of the last server."""
    from action_export.serve.restarts import Restarts

    restarts = Restarts(args.max_restarts if args.on_death == "restart" else 0)
    run = _Run()
    while True:
        try:
            _serve_once(args, options, run)
        except (ServeError, ModelDiedError) as exc:
            # What could not be served at first will not be served now.
            pause_s = restarts.pause_s(run.ready_s()) if run.was_ready else None
            if pause_s is None:
                raise
            report("action-serve", exc, as_json=False)
            _say(f"restart {restarts.in_a_row} of at most {args.max_restarts} in {pause_s:g} s")
            time.sleep(pause_s)


@dataclass
class _Run:
    """Of the servers so far. ready_at: when the present one was ready, None before."""

    was_ready: bool = False
    ready_at: float | None = None

    def ready_s(self) -> float:
        return 0.0 if self.ready_at is None else time.monotonic() - self.ready_at


def _serve_once(args: argparse.Namespace, options: ServerOptions, run: _Run) -> None:
    from action_export.serve import serve

    run.ready_at = None
    _progress(args, f"starting tritonserver on {args.repo}")
    started = time.monotonic()
    with serve(args.repo, options) as server:
        run.ready_at = time.monotonic()
        ready = f"ready after {run.ready_at - started:.1f} s"
        if run.was_ready:
            _say(f"{ready}, at the same addresses, process {server.pid}")
        else:
            _print(_as_json(server) if args.json else _as_text(server))
            _progress(args, f"{ready}; Ctrl-C stops it")
        run.was_ready = True
        _wait(server, follow_log=args.verbose > 0)


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
    """Returns never: by Stopped, or by the error when the server or a model of it has died."""
    shown = 0
    while True:
        server.check_running()
        if follow_log:
            text = server.log_text(shown)
            text = text[: text.rfind("\n") + 1]  # whole lines, so no character is cut in two
            shown += len(text.encode())
            sys.stderr.write(plain(text, keep="\n\t"))
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
    add(
        "--on-death",
        choices=("exit", "restart"),
        default="exit",
        help="when the server or the process of a model dies (default: %(default)s)",
    )
    add(
        "--max-restarts",
        type=int,
        default=5,
        metavar="N",
        help="in a row, with growing pauses; five minutes without a death end a row "
        "(default: %(default)s)",
    )
    doors = parser.add_mutually_exclusive_group()
    doors.add_argument(
        "--admin-key-file",
        type=Path,
        metavar="FILE",
        help="open shared memory, log and trace settings to callers with this key",
    )
    doors.add_argument("--open-admin", action="store_true", help="open them to every caller")
    add("--json", action="store_true", help="print one JSON object, also on failure")
    add("-v", "--verbose", action="count", default=0, help="show the server's log; -vv: more")
    add("-q", "--quiet", action="store_true", help="no progress")
    args = parser.parse_args(own)
    if args.poll is not None and args.poll < 1:
        parser.error("--poll takes whole seconds, 1 or more")
    if args.max_restarts < 0:
        parser.error("--max-restarts takes 0 or more")
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
        admin_key=_admin_key(args.admin_key_file),
        open_admin=args.open_admin,
        extra_args=args.extra,
    )


def _admin_key(file: Path | None) -> str | None:
    """The first line of the file."""
    if file is None:
        return None
    try:
        return file.read_text("ascii").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ServeError(
            f"the admin key cannot be read: {exc}",
            hint=f"openssl rand -hex 32 > {shlex.quote(str(file))}",
        ) from exc


def _as_json(server: Server) -> str:
    return terminal.as_json(
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
        _say(text)


def _say(text: str) -> None:
    sys.stderr.write(f"action-serve: {plain(text)}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
