"""From what the server sends to values. Pure functions that both clients share."""

from __future__ import annotations

from typing import Any

import numpy as np
from action_runtime.spec import PARAMETER, Contract, ContractError
from numpy.typing import NDArray

from ._errors import InvalidRequestError, NotPublishedError, ServerError
from ._types import Classification, Prediction, Timings


def contract_of(config: Any) -> Contract:
    """The contract in a `ModelConfig` of the server.

    Raises:
        NotPublishedError: there is none, this version cannot read it, or the model is only a part.
    """
    name = config.name
    if PARAMETER not in config.parameters:
        raise NotPublishedError(
            f"the model {name!r} was not published by action-export: its configuration has no "
            f"parameter {PARAMETER!r}",
            hint="name a model that action-export wrote, without _preprocess or _recognizer",
        )
    # The preprocess model carries the same contract, for its backend.
    if "scores" not in {output.name for output in config.output}:
        raise NotPublishedError(
            f"the model {name!r} is a part of a published model, and gives no scores",
            hint=f"use the ensemble: {name.removesuffix('_preprocess')!r}",
        )
    try:
        return Contract.from_json(config.parameters[PARAMETER].string_value)
    except ContractError as exc:
        raise NotPublishedError(
            f"the serving contract of the model {name!r} cannot be read: {exc}",
            hint="install the version of action-export that published it",
        ) from exc


def check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise InvalidRequestError(f"top_k is {top_k}", hint="ask for at least one class")


def scores_of(result: Any, contract: Contract) -> NDArray[np.float32]:
    """float32 [classes] of a ModelInferResponse.

    Raises:
        ServerError: no scores, or not one for each class of the contract.
    """
    from tritonclient.grpc import InferResult

    scores = InferResult(result).as_numpy("scores")
    if scores is None or scores.shape != (1, contract.classes) or scores.dtype != np.float32:
        got = "none" if scores is None else f"{scores.dtype} of shape {list(scores.shape)}"
        raise ServerError(
            f"the server should send float32 scores of shape [1, {contract.classes}]; got {got}",
            hint="check that the model on the server is as action-export wrote it",
        )
    row: NDArray[np.float32] = scores[0]
    return row


def classification(
    scores: NDArray[np.float32], contract: Contract, top_k: int, timings: Timings
) -> Classification:
    """The best `top_k` classes, or all of them where there are fewer."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    labels = contract.labels or tuple(str(index) for index in range(contract.classes))
    top = tuple(
        Prediction(label=labels[index], index=int(index), score=float(scores[index]))
        for index in best
    )
    return Classification(scores=scores, top=top, timings=timings)
