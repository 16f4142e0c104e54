"""The last part of the proof: the staged repository on a real tritonserver, before it is published.

Frames go in over gRPC, as a client sends them, and every video at once, so that the server batches
different videos together; the scores must be mmaction2's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from action_export.errors import ServeError
from action_export.parity import compare_scores
from action_export.reference import Reference
from action_export.serve import serve
from action_export.types import Check, Tensors

_ROUNDS = 2
_TIMEOUT_S = 600.0


def verify_live(
    stage: Path,
    *,
    model: str,
    tensors: Tensors,
    references: tuple[Reference, ...],
    tolerance: float,
) -> Check:
    """Serves `stage` and compares the ensemble's scores with the references.

    Raises:
        DependencyError: there is no tritonserver.
        ServeError: it does not load the models, or answers with an error.
    """
    rows = references * _ROUNDS
    with serve(stage) as server, ThreadPoolExecutor(max_workers=len(rows)) as pool:
        url = server.grpc_url
        scores = list(pool.map(lambda row: _infer(url, model, tensors, row), rows))
    return compare_scores(
        f"live server, {len(rows)} at once", list(zip(scores, rows, strict=True)), tolerance
    )


def _infer(url: str, model: str, tensors: Tensors, reference: Reference) -> NDArray[np.float32]:
    """The ensemble's scores for the frames of one video, [classes]."""
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    inputs = []
    for spec, values in (
        (tensors.frames, reference.frames),
        (tensors.frame_index, reference.frame_index),
    ):
        inputs.append(InferInput(spec.name, values.shape, spec.dtype))
        inputs[-1].set_data_from_numpy(values)
    try:
        with InferenceServerClient(url) as client:
            result = client.infer(model, inputs, client_timeout=_TIMEOUT_S)
    except InferenceServerException as exc:
        raise ServeError(
            f"the staged model does not answer for {reference.video.name}: {exc.message()}",
            hint="nothing was published; --proof graph leaves the server out",
        ) from exc
    scores: NDArray[np.float32] = result.as_numpy(tensors.scores.name)[0]
    return scores
