"""The last part of the proof: the staged repository on a real tritonserver, before it is published.

Frames go in over gRPC, as a client sends them, and every video at once, so that the server batches
different videos together; the scores must be mmaction2's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from action_runtime.spec import Contract
from numpy.typing import NDArray

from action_export.errors import DependencyError, ServeError
from action_export.measure import compare_scores
from action_export.reference import Reference
from action_export.serve import ServerOptions, find_installation, serve
from action_export.types import Check, Tensors
from action_export.wire import pack_as_stated

_ROUNDS = 2
_TIMEOUT_S = 600.0
_SETTLE_S = 5.0  # from a model's death to the server's end


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What is served. model: the ensemble's name; recognizer: that of its last step."""

    folder: Path
    model: str
    recognizer: str
    contract: Contract
    tensors: Tensors
    server_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of the difference, by where the server runs the recognizer."""

    cpu: float
    gpu: float


def verify_live(staged: Staged, references: tuple[Reference, ...], bounds: Bounds) -> Check:
    """Serves what is staged, and compares the ensemble's scores with the references.

    Raises:
        DependencyError: there is no tritonserver.
        ServeError: it does not load the models, or answers with an error.
        ModelDiedError: the process of a model died, as for want of memory.
    """
    rows = references * _ROUNDS
    frames = {row.video: _frames(row, staged.contract) for row in references}
    # Once all answers are there, nothing is lost with the server, which takes 2 s to end in order.
    options = ServerOptions(extra_args=staged.server_flags, stop_timeout_s=0)
    with (
        serve(staged.folder, options) as server,
        ThreadPoolExecutor(max_workers=len(rows)) as pool,
    ):
        url = server.grpc_url
        on_gpu = _runs_on_gpu(url, staged.recognizer)
        try:
            scores = list(pool.map(lambda row: _infer(url, staged, row, frames[row.video]), rows))
        except ServeError:
            server.check_running(_SETTLE_S)  # a server that has ended says better why
            raise
    return compare_scores(
        f"live server, {len(rows)} at once",
        list(zip(scores, rows, strict=True)),
        bounds.gpu if on_gpu else bounds.cpu,
    )


def has_official_backends() -> bool:
    """Whether the server of the proof brings backends of its own in place of ours."""
    try:
        return find_installation(None).other_backends
    except DependencyError:
        return False


def _runs_on_gpu(url: str, model: str) -> bool:
    """What the server made of the instances of the model, which the config may leave to it."""
    from tritonclient.grpc import InferenceServerClient, model_config_pb2

    kind = model_config_pb2.ModelInstanceGroup.KIND_GPU
    with InferenceServerClient(url) as client:
        config = client.get_model_config(model).config
    return any(group.kind == kind for group in config.instance_group)


def _frames(reference: Reference, contract: Contract) -> NDArray[Any]:
    """Pixels of full size, which leave all to the server; JPEG of those that a client sends."""
    return reference.frames if contract.wire is None else pack_as_stated(reference.frames, contract)


def _infer(
    url: str, staged: Staged, reference: Reference, frames: NDArray[Any]
) -> NDArray[np.float32]:
    """The ensemble's scores for the frames of one video, [classes]."""
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    inputs, tensors = [], staged.tensors
    for spec, values in (
        (tensors.frames, frames),
        (tensors.frame_index, reference.frame_index),
    ):
        inputs.append(InferInput(spec.name, values.shape, spec.dtype))
        inputs[-1].set_data_from_numpy(values)
    try:
        with InferenceServerClient(url) as client:
            result = client.infer(staged.model, inputs, client_timeout=_TIMEOUT_S)
    except InferenceServerException as exc:
        raise ServeError(
            f"the staged model does not answer for {reference.video.name}: {exc.message()}",
            hint="nothing was published; --proof graph leaves the server out",
        ) from exc
    scores: NDArray[np.float32] = result.as_numpy(tensors.scores.name)[0]
    return scores
