"""The ports that a server listens on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from action_export.errors import ServeError
from action_export.serve.options import ServerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """metrics is None where no metrics service was asked for."""

    grpc: int
    http: int
    metrics: int | None


@contextmanager
def reserved_ports(options: ServerOptions) -> Iterator[Ports]:
    """The ports that were asked for, and free ones for the rest, for the block's time.

    A server may listen on them, and nobody else is given one: tritonserver binds them only when
    all models are loaded, which may be minutes later.

    ServeError: a port is taken, or the host is not an address of this machine.
    """
    with ExitStack() as held:
        yield Ports(
            grpc=_reserve(options.host, options.grpc_port, "--grpc-port", held),
            http=_reserve(options.host, options.http_port, "--http-port", held),
            metrics=(
                _reserve(options.host, options.metrics_port, "--metrics-port", held)
                if options.metrics
                else None
            ),
        )


def _reserve(host: str, port: int | None, flag: str, held: ExitStack) -> int:
    holder = held.enter_context(socket.socket())
    # Linux: where both have SO_REUSEADDR, as servers do, a port that is bound but not listened on
    # can be bound again, while bind to port 0 and connect pass over it. Also, a port whose last
    # connections are in TIME_WAIT counts as free.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port or 0))
    except (OSError, OverflowError) as exc:
        raise ServeError(
            f"port {port or 0} of {host} cannot be used: {exc}",
            hint=f"stop what listens there, or choose another with {flag} (0 picks a free one)",
        ) from exc
    chosen: int = holder.getsockname()[1]
    return chosen
