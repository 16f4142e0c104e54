"""`with serve(repo) as server:` - a tritonserver on a model repository, for the block's time."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from action_export.errors import DependencyError, RepositoryError
from action_export.serve.access import GRPC_HEADER, HEADER, access_flags, admin_headers
from action_export.serve.configs import model_configs
from action_export.serve.installation import Installation, environment, find_installation
from action_export.serve.memory import check_room, python_models, region_size
from action_export.serve.options import ServerOptions
from action_export.serve.ports import Ports, reserved_ports
from action_export.serve.process import Index, Launch, Process, Sandbox, running, shell_safe
from action_export.serve.readiness import ServedModel, check_running, wait_ready

DEFAULTS = ServerOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that is ready.

    grpc_url: "host:port", as gRPC clients take it.
    http_url, metrics_url: with the scheme; metrics_url is None where there is no such service.
    pid: tritonserver's own process id.
    models: what was ready when the server was.
    """

    grpc_url: str
    http_url: str
    metrics_url: str | None
    models: tuple[ServedModel, ...]
    process: Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_text(self, start: int = 0) -> str:
        """What the server and its models have printed, from byte `start` on."""
        return self.process.log_text(start)

    def check_running(self, settle_s: float = 0.0) -> None:
        """ServeError where the server has ended by itself, ModelDiedError where a model had died.

        settle_s: how long to wait for an end that is near, as when a request has just failed.
        """
        check_running(self.process, settle_s)


@contextmanager
def serve(repo: Path | str, options: ServerOptions = DEFAULTS) -> Iterator[Server]:
    """Serves the repository until the block ends, or this process does, in whatever way.

    RepositoryError: there is no model in `repo`. DependencyError: there is no tritonserver.
    ServeError: a port is taken, a model cannot be loaded, or the server is not ready in time.
    """
    repository = _checked(Path(repo))
    installation = find_installation(options.tritonserver)
    _check_backends(repository, installation)
    region = _region(repository, installation, options)
    with reserved_ports(options) as ports:
        launch = plan(repository, installation, options, ports=ports, region_bytes=region)
        host = _callable(options.host)
        with running(launch) as process:
            yield Server(
                grpc_url=f"{host}:{ports.grpc}",
                http_url=f"http://{host}:{ports.http}",
                metrics_url=f"http://{host}:{ports.metrics}/metrics" if ports.metrics else None,
                models=wait_ready(
                    process,
                    f"{host}:{ports.grpc}",
                    options.ready_timeout_s,
                    admin_headers(options, GRPC_HEADER),
                ),
                process=process,
            )


def plan(
    repository: Path,
    installation: Installation,
    options: ServerOptions,
    *,
    ports: Ports,
    region_bytes: int,
) -> Launch:
    """The command, and the work folder that it needs.

    region_bytes: where the shared memory region of each Python model instance starts.
    """
    sandbox = Sandbox.unique()
    links = dict(installation.links)
    if not shell_safe(str(repository)):
        links["repository"] = str(repository)
        repository = sandbox.workdir / "repository"
    return Launch(
        sandbox=sandbox,
        command=(
            str(installation.program),
            f"--model-repository={repository}",
            # The exporter writes full configs: what a server would guess at is a defect.
            "--disable-auto-complete-config",
            *(flag.replace("{workdir}", str(sandbox.workdir)) for flag in installation.flags),
            *_address_flags(options, ports),
            *access_flags(options),
            *_memory_flags(options, sandbox, region_bytes),
            *_poll_flags(options),
            f"--log-verbose={options.log_verbose}",
            *options.extra_args,
        ),
        links=links,
        copies=installation.copies,
        substitutions=installation.substitutions,
        texts=installation.texts,
        env=environment(installation, sandbox.workdir),
        index=_index(options, ports),
        stop_timeout_s=options.stop_timeout_s,
    )


def _callable(host: str) -> str:
    """0.0.0.0 listens everywhere, and is no address to call."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def _index(options: ServerOptions, ports: Ports) -> Index | None:
    if "--allow-http=false" in "=".join(options.extra_args).lower():
        return None
    headers = admin_headers(options, HEADER)
    return Index(host=_callable(options.host), port=ports.http, headers=headers)


def _checked(repository: Path) -> Path:
    hint = f"action-export CONFIG CHECKPOINT --triton-repo {shlex.quote(str(repository))}"
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a directory", hint=hint)
    if not any(repository.glob("*/config.pbtxt")):
        raise RepositoryError(f"{repository} holds no model (NAME/config.pbtxt)", hint=hint)
    return repository.resolve()


def _check_backends(repository: Path, installation: Installation) -> None:
    """DependencyError where the server lacks the backend of a model, before it says so itself."""
    if installation.other_backends:
        return
    for name, config in model_configs(repository):
        if config.backend and config.backend not in installation.python_backends:
            elsewhere = "serve it with NVIDIA's image, or name its server: --tritonserver FILE"
            raise DependencyError(
                f"{name} needs the backend {config.backend!r}, which the tritonserver of "
                "nvidia-pytriton does not have",
                hint=installation.missing.get(config.backend, elsewhere),
            )


def _region(repository: Path, installation: Installation, options: ServerOptions) -> int:
    found = python_models(repository, installation.python_backends)
    size = options.shm_default_byte_size or region_size(found)
    check_room(found, size)
    return size


def _address_flags(options: ServerOptions, ports: Ports) -> tuple[str, ...]:
    services = {"grpc": ports.grpc, "http": ports.http}
    if ports.metrics is not None:
        services["metrics"] = ports.metrics
    flags = [f"--{name}-port={port}" for name, port in services.items()]
    flags += [f"--{name}-address={options.host}" for name in services]
    return (*flags, *(() if "metrics" in services else ("--allow-metrics=false",)))


def _memory_flags(options: ServerOptions, sandbox: Sandbox, region: int) -> tuple[str, ...]:
    # Backends that are themselves written in Python get the settings of "python" (tried, 24.10).
    flags = [
        f"--backend-config=python,shm-region-prefix-name={sandbox.shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={region}",
    ]
    if options.pinned_memory_pool_byte_size is not None:
        flags.append(f"--pinned-memory-pool-byte-size={options.pinned_memory_pool_byte_size}")
    return tuple(flags)


def _poll_flags(options: ServerOptions) -> tuple[str, ...]:
    if options.poll_s is None:
        return ()
    return ("--model-control-mode=poll", f"--repository-poll-secs={options.poll_s}")
