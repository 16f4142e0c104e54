"""Which of Triton's doors are shut for callers, and with which key they open.

Triton leaves them open to whoever reaches the port: a caller may register any POSIX shared memory
that the server's user may read and write, the regions of the Python models included, have requests
read from it and answers written into it, and may turn logs and traces off or send them into files.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from action_export.errors import ServeError
from action_export.serve.options import ServerOptions

HEADER = "action-admin-key"
GRPC_HEADER = f"triton-grpc-protocol-{HEADER}"  # the prefix is Triton's

RESTRICTED: tuple[str, ...] = ("shared-memory", "trace", "logging")
"""By the names of Triton's flags. What clients need stays open: inference, metadata, configs,
health, statistics and the list of models."""

KEY = re.compile(r"[\w.~+/-]+", re.ASCII)
EXPLICIT = "--model-control-mode=explicit"


def access_flags(options: ServerOptions) -> tuple[str, ...]:
    """tritonserver's flags; ServeError for a key that cannot be sent, or one that is needed."""
    if options.open_admin:
        return ()
    key = options.admin_key
    if key is not None and not KEY.fullmatch(key):
        raise ServeError(
            "the admin key is not one word of ASCII letters, digits and . ~ + / - _",
            hint="openssl rand -hex 32 makes a good one",
        )
    restricted = RESTRICTED
    if EXPLICIT in "=".join(options.extra_args):
        # In its other modes Triton itself refuses to load and unload, and the list of models, which
        # goes by the same name, stays open.
        restricted = (*RESTRICTED, "model-repository")
        if key is None:
            raise ServeError(
                f"with {EXPLICIT} whoever reaches the server may load and unload models",
                hint="give those who may a key, --admin-key-file FILE, or all, --open-admin",
            )
    value = f"{','.join(restricted)}:{HEADER}={key or _nobodys_key()}"
    return (f"--grpc-restricted-protocol={value}", f"--http-restricted-api={value}")


def admin_headers(options: ServerOptions, name: str) -> Mapping[str, str]:
    """What opens the doors: over HTTP with the name HEADER, over gRPC GRPC_HEADER."""
    return {name: options.admin_key} if options.admin_key else {}


def _nobodys_key() -> str:
    # Any user of the machine can read a command line. No header can hold the line break, so whoever
    # reads this one cannot send it.
    return f"{secrets.token_hex(32)}\n"
