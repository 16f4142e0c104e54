"""The proof on a real server: what is wrong there is caught, and what a client reads is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from action_export import live, measure, parity, repository
from action_export.errors import ParityError
from action_export.graph import serving_module
from action_export.live import Bounds, verify_live
from action_export.reference import Reference
from action_export.repository import Names
from action_export.serve import Server, serve
from action_export.staged import Caller, Staged
from action_export.tracing import onnx_from_module
from onnx import helper as oh
from support.tiny import MODEL_3D, PIPELINE_3D, Tiny, make, references

BOUNDS = Bounds(cpu=1e-4, gpu=1e-3)
LABELS = tuple(f"class: {number}" for number in range(10))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    made = make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D, max_batch_size=4)
    return replace(made, contract=replace(made.contract, labels=LABELS))


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> tuple[Reference, ...]:
    return references(tiny)


@pytest.fixture(scope="module")
def staged(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    folder = tmp_path_factory.mktemp("staged")
    plan = repository.plan(
        folder / "none", Names(ensemble="tiny"), contract=tiny.contract, tensors=tiny.tensors
    )
    repository.write(plan, folder)
    module = serving_module(tiny.model, layout="NCTHW", average="prob")
    specs = dict(clips=tiny.tensors.clips, scores=tiny.tensors.scores)
    onnx_from_module(module, **specs, opset=18, path=folder / plan.graph)  # type: ignore[arg-type]
    return Staged(
        folder=folder,
        names=plan.names,
        version=plan.version,
        contract=tiny.contract,
        tensors=tiny.tensors,
    )


@pytest.fixture(scope="module")
def server(staged: Staged) -> Iterator[Server]:
    with serve(staged.folder) as running:
        yield running


def test_what_is_right_passes_and_a_batch_of_different_videos_has_run(
    staged: Staged, pair: tuple[Reference, ...]
) -> None:
    proved = verify_live(staged, pair, BOUNDS)
    assert [check.name for check in proved.checks] == [
        "what clients read",
        "live recognizer, batch of 3",
        "live server, 2 at once",
    ]
    assert all(check.passed for check in proved.checks)
    assert "a batch of several requests ran" in proved.checks[-1].detail
    assert proved.notes == ()


def with_end(staged: Staged, folder: Path, nodes: list[Any]) -> Staged:
    """A copy whose graph goes on with these nodes, from "right" to "scores"."""
    import shutil

    shutil.copytree(staged.folder, folder)
    path = folder / "tiny_recognizer/1/model.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["right" if name == "scores" else name for name in node.output]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return replace(staged, folder=folder)


def numbers(name: str, *values: float, kind: int = onnx.TensorProto.INT64) -> Any:
    tensor = oh.make_tensor(name, kind, [len(values)], values)
    return oh.make_node("Constant", [], [name], value=tensor)


def test_rows_that_the_server_mixes_up_are_caught(
    staged: Staged, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    """Alone, each video is right."""
    reverse = oh.make_node("Slice", ["right", "from", "to", "axis", "step"], ["scores"])
    ends = [numbers("from", -1), numbers("to", -(2**31)), numbers("axis", 0), numbers("step", -1)]
    wrong = with_end(staged, tmp_path / "wrong", [*ends, reverse])
    proved = verify_live(wrong, pair, BOUNDS)
    assert not {check.name: check for check in proved.checks}["live recognizer, batch of 3"].passed
    with pytest.raises(ParityError, match="live recognizer, batch of 3 by"):
        parity.require(proved.checks)


def test_a_wrong_answer_to_frames_of_pixels_is_refused(
    staged: Staged, pair: tuple[Reference, ...], tmp_path: Path
) -> None:
    """On a server that takes videos one by one."""
    factor = numbers("factor", 1.001, kind=onnx.TensorProto.FLOAT)
    wrong = with_end(
        staged, tmp_path / "wrong", [factor, oh.make_node("Mul", ["right", "factor"], ["scores"])]
    )
    config = wrong.folder / "tiny_recognizer/config.pbtxt"
    text = config.read_text("utf-8").replace("max_batch_size: 4", "max_batch_size: 1")
    config.write_text(text.replace("dynamic_batching { }", ""), "utf-8")
    tensors = wrong.tensors
    one = replace(tensors, clips=replace(tensors.clips, max_batch_size=1))
    proved = verify_live(replace(wrong, tensors=one), pair, BOUNDS)
    assert [check.name for check in proved.checks] == [
        "what clients read",
        "live server, 2 at once",
    ]
    with pytest.raises(ParityError, match="live server, 2 at once by"):
        parity.require(proved.checks)


def test_a_server_that_batches_nothing_is_told_of(
    server: Server, staged: Staged, pair: tuple[Reference, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller(url=server.grpc_url, staged=staged)
    assert live._in_batches(caller, pair, 1e-4, 0.0).notes == ()
    counted = Caller.ran

    def as_if_alone(self: Caller, *since: Any, rows: int = 0, **more: Any) -> Any:
        ran = counted(self, *since, rows=rows, **more)
        return replace(ran, executions=ran.executions + rows)

    monkeypatch.setattr(Caller, "ran", as_if_alone)
    proved = live._in_batches(caller, pair, 1e-4, 0.0)
    assert all(check.passed for check in proved.checks)
    assert f"no batch of several, {live._ROUNDS} rounds" in proved.checks[-1].detail
    assert "not proved" in proved.notes[0]


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"labels": tuple(reversed(LABELS))}, r"class 0 is called 'class: 0', not 'class: 9'"),
        ({"labels": ()}, r"class 0 is called 'class: 0', not ''"),
        ({"labels": LABELS}, ""),
        ({"provenance": {"config": "another"}}, r"tiny has another contract; tiny_preprocess has"),
    ],
    ids=["other labels", "no labels", "right", "another contract"],
)
def test_labels_and_contract_are_read_back(
    server: Server, staged: Staged, pair: tuple[Reference, ...], expected: Any, said: str
) -> None:
    contract = replace(staged.contract, **expected)
    caller = Caller(url=server.grpc_url, staged=replace(staged, contract=contract))
    if not said:
        assert caller.read_back(pair[0]).passed
        return
    with pytest.raises(ParityError, match=said) as caught:
        caller.read_back(pair[0])
    assert "does not say what was written" in caught.value.message


def test_tensors_and_versions_are_read_back(
    server: Server, staged: Staged, pair: tuple[Reference, ...]
) -> None:
    scores = replace(staged.tensors.scores, dims=(11,))
    other = replace(staged, tensors=replace(staged.tensors, scores=scores), version=7)
    with pytest.raises(ParityError) as caught:
        Caller(url=server.grpc_url, staged=other).read_back(pair[0])
    assert "tiny has the tensors" in caught.value.message
    assert "tiny_recognizer has the tensors" in caught.value.message
    assert "tiny has versions 1" in caught.value.message


def test_no_proxy_of_the_environment_stands_before_the_server_of_the_proof(
    server: Server, staged: Staged, pair: tuple[Reference, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    caller = Caller(url=server.grpc_url, staged=staged)
    assert caller.read_back(pair[0]).passed


def test_the_videos_of_these_tests_differ(pair: tuple[Reference, ...]) -> None:
    measure.require_distinguishable(pair, 1e-4)
