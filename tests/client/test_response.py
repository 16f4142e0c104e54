"""From the server's words to values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from action_client import NotPublishedError, Prediction, ServerError, Timings, _response
from action_runtime.spec import PARAMETER, Contract
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import np_to_triton_dtype

NO_TIME = Timings(decode_ms=0.0, resize_ms=0.0, encode_ms=0.0, exchange_ms=0.0, wire_bytes=0)


def config(text: str | None, output: str = "scores") -> model_config_pb2.ModelConfig:
    made = model_config_pb2.ModelConfig(name="moves")
    made.output.add(name=output)
    if text is not None:
        made.parameters[PARAMETER].string_value = text
    return made


def test_the_contract_is_read_from_the_configuration(contract: Contract) -> None:
    assert _response.contract_of(config(contract.to_json())) == contract


def test_a_model_without_a_contract_was_not_published_by_us() -> None:
    with pytest.raises(NotPublishedError, match="'moves' was not published by action-export"):
        _response.contract_of(config(None))


def test_a_part_of_a_published_model_is_named_as_such(contract: Contract) -> None:
    with pytest.raises(NotPublishedError, match="is a part of a published model") as caught:
        _response.contract_of(config(contract.to_json(), output="clips"))
    assert "ensemble" in caught.value.hint


@pytest.mark.parametrize("text", ["{", '{"schema": 999}', '{"schema": 1}'])
def test_a_contract_that_cannot_be_read_says_so(text: str) -> None:
    with pytest.raises(NotPublishedError, match="cannot be read") as caught:
        _response.contract_of(config(text))
    assert "install the version" in caught.value.hint


def answer(scores: np.ndarray | None) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse()
    if scores is not None:
        datatype = np_to_triton_dtype(scores.dtype)
        response.outputs.add(name="scores", datatype=datatype, shape=scores.shape)
        response.raw_output_contents.append(scores.tobytes())
    return response


def test_scores_are_those_of_the_server_to_the_last_bit(contract: Contract) -> None:
    sent = np.array([[0.1, 1 / 3, 0.7]], np.float32)
    assert np.array_equal(_response.scores_of(answer(sent), contract), sent[0])


@pytest.mark.parametrize(
    "sent",
    [None, np.zeros((1, 4), np.float32), np.zeros(3, np.float32), np.zeros((1, 3), np.float64)],
    ids=["none", "another class count", "another rank", "another type"],
)
def test_an_answer_of_another_form_is_an_error(sent: np.ndarray | None, contract: Contract) -> None:
    with pytest.raises(ServerError, match=r"FP32 scores of shape \[1, 3\]"):
        _response.scores_of(answer(sent), contract)


def test_best_classes_come_first_and_ties_in_class_order(contract: Contract) -> None:
    scores = np.array([0.25, 0.5, 0.25], np.float32)
    found = _response.classification(scores, contract, 3, NO_TIME)
    assert found.top == (
        Prediction(label="right", index=1, score=0.5),
        Prediction(label="left", index=0, score=0.25),
        Prediction(label="once around", index=2, score=0.25),
    )


def test_ties_of_many_classes_stay_in_class_order(contract: Contract) -> None:
    many = dataclasses.replace(contract, classes=400, labels=())
    scores = np.resize(np.array([0.1, 0.2], np.float32), 400)
    found = _response.classification(scores, many, 200, NO_TIME)
    assert [prediction.index for prediction in found.top] == list(range(1, 400, 2))


@pytest.mark.parametrize(("top_k", "given"), [(1, 1), (2, 2), (50, 3)])
def test_top_k_is_at_most_the_number_of_classes(top_k: int, given: int, contract: Contract) -> None:
    scores = np.array([0.2, 0.3, 0.5], np.float32)
    assert len(_response.classification(scores, contract, top_k, NO_TIME).top) == given


def test_classes_without_labels_are_named_by_their_number(contract: Contract) -> None:
    unnamed = dataclasses.replace(contract, labels=())
    scores = np.array([0.2, 0.3, 0.5], np.float32)
    found = _response.classification(scores, unnamed, 2, NO_TIME)
    assert [prediction.label for prediction in found.top] == ["2", "1"]
