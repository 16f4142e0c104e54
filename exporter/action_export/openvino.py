"""Writes the IR that Triton's OpenVINO backend reads, and runs it with the settings that it serves.

The IR and not the ONNX file: OpenVINO 2023.0 and 2024.0, which older images have, refuse graphs of
ONNX opset 18 (axes of ReduceMean as an input), and read the IR that a newer OpenVINO makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from action_export import parity
from action_export.dependencies import import_openvino
from action_export.errors import EngineError, ParityError, first_line
from action_export.serve.backends import openvino_network as network
from action_export.tracing import Graph
from action_export.types import Check, Tensors

Computes = Literal["f32", "bf16"]
"""What OpenVINO's CPU plugin computes in, in its words."""


def has_bf16(*, hinted: bool = False) -> bool:
    """Whether OpenVINO computes in bf16 on this CPU, by itself or because it is `hinted` to."""
    return network.has_bf16(hinted=hinted)


def notes_on_bf16(*, asked: bool, proved: bool) -> tuple[str, ...]:
    """What the proof says of bf16, and what it costs where the serving CPU, not this one, lacks it.

    asked: for its hint. proved: in bf16, too.
    """
    unproved = (
        "OpenVINO was proved in float32 only, because this CPU has no bf16; on one that has, what "
        "it computes in bf16 is not proved"
    )
    cost = (
        "the hint of bf16 counts on the CPU that serves: one with AVX-512 and without bf16 "
        "(avx512_bf16 in its /proc/cpuinfo) follows it and takes 2.9 times as long as in float32; "
        "for such a CPU export without --precision bf16"
    )
    slow_here = "this CPU is such a one: what is proved here in bf16 is slower than float32"
    said = ((unproved, not proved), (cost, asked), (slow_here, asked and proved and not has_bf16()))
    return tuple(note for note, holds in said if holds)


def ir_of(graph: Graph, path: Path) -> Graph:
    """Writes the ONNX file as IR: `path`, and its weights in float32 beside it.

    Its input and output say which axis is the batch; the official backend warns where none does.

    Raises:
        EngineError: OpenVINO does not read the graph.
    """
    openvino = import_openvino()
    try:
        model = network.read(graph.path)
        for port in (*model.inputs, *model.outputs):
            port.node.layout = openvino.Layout("N...")
        openvino.save_model(model, path, compress_to_fp16=False)
    # OpenVINO's exceptions are RuntimeErrors, as are its bugs
    except RuntimeError as exc:
        raise EngineError(
            f"OpenVINO does not read the graph: {first_line(exc)}", hint="--format onnx"
        ) from exc
    files = (path.name, path.with_suffix(".bin").name)
    return Graph(path=path, opset=graph.opset, nodes=len(model.get_ops()), files=files)


def served_config(file: Path) -> Mapping[str, Any]:
    """A config.pbtxt as the JSON that a backend gets."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    served: Mapping[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return served


def require(checks: tuple[Check, ...]) -> None:
    """Raises ParityError where float32 is wrong, or bf16 costs too much."""
    parity.require(tuple(check for check in checks if "bf16" not in check.name))
    for check in checks:
        if not check.passed:
            raise ParityError(
                f"{check.name} is off by {check.error:.3g} of the spread of the scores, more than "
                f"its bound {check.bound:g}; Triton's OpenVINO backend computes in bf16 wherever "
                "the CPU has it",
                hint="nothing was published; --format onnx",
            )


class Runner:
    """Runs batches of clips through an IR as the server does.

    config: as JSON. computes: in place of what it says.
    """

    def __init__(
        self, path: Path, tensors: Tensors, config: Mapping[str, Any], computes: Computes
    ) -> None:
        try:
            compiled = network.compiled(network.read(path), config, computes)
        except RuntimeError as exc:
            raise EngineError(
                f"OpenVINO does not load the graph: {first_line(exc)}", hint="--format onnx"
            ) from exc
        self._request = compiled.create_infer_request()
        self._clips, self._scores = tensors.clips.name, tensors.scores.name

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            self._request.infer({self._clips: batch}, share_inputs=True)
        except RuntimeError as exc:
            raise ParityError(
                f"OpenVINO does not run a batch of {len(batch)}: {first_line(exc)}",
                hint="nothing was published; --format onnx",
            ) from exc
        scores: NDArray[np.float32] = self._request.get_tensor(self._scores).data.copy()
        return scores
