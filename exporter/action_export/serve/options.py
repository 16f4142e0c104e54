"""What may be said about a server; everything else is derived from the repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How to start a tritonserver.

    grpc_port, http_port, metrics_port: None, or 0 as with sockets, picks a free one.
    metrics: False starts no metrics service.
    tritonserver: the program; None takes the one on PATH, else the nvidia-pytriton wheel's.
    poll_s: look for new versions and models this often, whole seconds; None never looks.
    shm_default_byte_size: where the shared memory of each Python model instance starts; it grows
        when needed. None takes what one request of this repository needs.
    pinned_memory_pool_byte_size: None keeps Triton's 256 MB; without a GPU there is no such pool.
    stop_timeout_s: how long requests in flight may take once it is told to stop; 0 ends it at once.
    admin_key: opens shared memory, trace and log settings, and explicit control of models, to
        callers that send it (see access.py); None: to nobody.
    open_admin: open them to every caller, as Triton does.
    extra_args: appended to tritonserver's command line, with absolute paths: the server runs in a
        folder of its own. Ports and addresses belong in the fields above.
    """

    host: str = "127.0.0.1"
    grpc_port: int | None = None
    http_port: int | None = None
    metrics_port: int | None = None
    metrics: bool = True
    tritonserver: Path | None = None
    poll_s: int | None = None
    ready_timeout_s: float = 120.0
    stop_timeout_s: float = 30.0
    log_verbose: int = 0
    shm_default_byte_size: int | None = None
    pinned_memory_pool_byte_size: int | None = None
    admin_key: str | None = None
    open_admin: bool = False
    extra_args: tuple[str, ...] = ()
