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
    # A text of another hand may have any type in any place.
    except (ContractError, ValueError, TypeError, AttributeError, ArithmeticError) as exc:
        raise NotPublishedError(
            f"the serving contract of the model {name!r} cannot be read: {exc}",
            hint="install the version of action-export that published it",
        ) from exc


def check_top_k(top_k: int) -> None:
    if not isinstance(top_k, int | np.integer) or top_k < 1:
        raise InvalidRequestError(f"top_k is {top_k!r}", hint="ask for at least one class")


def scores_of(result: Any, contract: Contract) -> NDArray[np.float32]:
    """float32 [classes] of a ModelInferResponse.

    Raises:
        ServerError: no scores, not one for each class of the contract, or no numbers.
    """
    output, content = _output(result, "scores")
    shape = [] if output is None else list(output.shape)
    fits = output is not None and (output.datatype, shape) == ("FP32", [1, contract.classes])
    if not fits or content is None or len(content) != 4 * contract.classes:
        got = "none" if output is None else f"{output.datatype} of shape {shape}"
        size = "" if content is None else f" in {len(content)} bytes"
        raise ServerError(
            f"the server should send FP32 scores of shape [1, {contract.classes}]; got {got}{size}",
            hint="check that the model on the server is as action-export wrote it",
        )
    row: NDArray[np.float32] = np.frombuffer(content, "<f4").astype(np.float32)
    if not np.isfinite(row).all():
        raise ServerError(
            f"{np.count_nonzero(~np.isfinite(row))} of the {contract.classes} scores that the "
            "server sent are no numbers",
            hint="the server's log may say more; a precision below float32 may be too small for "
            "this model",
        )
    return row


def _output(result: Any, name: str) -> tuple[Any, bytes | None]:
    """The description of an output of a ModelInferResponse and its bytes, None for what is missing.

    Servers other than Triton send numbers in place of bytes.
    """
    for position, output in enumerate(result.outputs):
        if output.name != name:
            continue
        raw = result.raw_output_contents
        if not raw:
            return output, np.array(output.contents.fp32_contents, "<f4").tobytes()
        return output, raw[position] if position < len(raw) else None
    return None, None


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
