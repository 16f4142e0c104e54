"""Waiting until every model of the repository answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from action_export.errors import ModelDiedError, ServeError
from action_export.serve._supervisor import MODEL_DIED, MODEL_DIED_WORDS
from action_export.serve.log import last_lines, load_errors
from action_export.serve.process import Process

POLL_S = 0.1
CALL_TIMEOUT_S = 5.0
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

RESTART_HINT = "`action-serve --on-death restart` goes on with a new server"
MEMORY_HINT = "if nobody did that, memory ran out: see dmesg, or raise the container's limit"

# Without these gRPC waits a second and more between attempts to connect, and sends even loopback
# through a proxy of the environment.
_CHANNEL_ARGS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of a model, in the words of Triton's repository index."""

    name: str
    version: str
    state: str
    reason: str


def wait_ready(
    process: Process, url: str, timeout_s: float, headers: Mapping[str, str] = NO_HEADERS
) -> tuple[ServedModel, ...]:
    """The served models, once all of them are ready. headers: for the list of models.

    ServeError: the server has ended, a model has failed to load, or the time is over.
    """
    from tritonclient.grpc import InferenceServerClient

    deadline = time.monotonic() + timeout_s
    with InferenceServerClient(url, channel_args=_CHANNEL_ARGS) as client:
        while time.monotonic() < deadline:
            check_running(process)
            models = _models_if_ready(client, headers)
            if models is not None:
                return models
            time.sleep(POLL_S)
    raise ServeError(
        f"tritonserver was not ready after {timeout_s:g} s; its log ends with\n"
        + _indented(last_lines(process.log_text())),
        hint="a large model may need longer: --timeout",
    )


def check_running(process: Process, settle_s: float = 0.0) -> None:
    """ServeError, with the reasons in its log, where the server has ended; ModelDiedError."""
    code = process.exit_code(settle_s)
    if code is None:
        return
    log = process.log_text()
    if code == MODEL_DIED:
        died = [line for line in log.splitlines() if line.startswith(MODEL_DIED_WORDS)]
        raise ModelDiedError(
            f"{died[-1].removeprefix(MODEL_DIED_WORDS)}, and Triton starts no other: the server "
            f"was stopped. Its log ends with\n{_indented(last_lines(log.partition(died[-1])[0]))}",
            hint=f"{MEMORY_HINT}; {RESTART_HINT}" if "signal 9 " in died[-1] else RESTART_HINT,
        )
    errors = load_errors(log)
    raise ServeError(
        f"tritonserver ended with exit code {code}:\n{_indented(errors)}", hint=_hint(errors)
    )


def _index(client: Any, headers: Mapping[str, str]) -> tuple[ServedModel, ...]:
    """The repository index of a server that is up."""
    index = client.get_model_repository_index(headers, client_timeout=CALL_TIMEOUT_S)
    return tuple(
        ServedModel(name=m.name, version=m.version, state=m.state, reason=m.reason)
        for m in index.models
    )


def _models_if_ready(client: Any, headers: Mapping[str, str]) -> tuple[ServedModel, ...] | None:
    """None while the server starts. ServeError: a model has failed, where that ends no server."""
    from tritonclient.utils import InferenceServerException

    try:
        ready = client.is_server_ready(client_timeout=CALL_TIMEOUT_S)
        found = _index(client, headers)
    except InferenceServerException:
        return None
    # A version that a newer one has replaced is UNAVAILABLE as well, for the reason "unloaded".
    failed = [m for m in found if m.state == "UNAVAILABLE" and m.reason not in ("", "unloaded")]
    if failed:
        reasons = tuple(f"{model.name} version {model.version}: {model.reason}" for model in failed)
        raise ServeError(f"tritonserver refused\n{_indented(reasons)}", hint=_hint(reasons))
    if not ready or any(model.state in ("LOADING", "UNLOADING") for model in found):
        return None
    return tuple(model for model in found if model.state == "READY")


def _hint(errors: tuple[str, ...]) -> str:
    if any("unable to find backend library" in error for error in errors):
        return "serve it with NVIDIA's Triton container, or name another --tritonserver"
    return ""


def _indented(lines: tuple[str, ...]) -> str:
    return "\n".join(f"  {line}" for text in lines for line in text.splitlines())
