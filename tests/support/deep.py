"""A network whose activations together need far more memory than each of them."""

from __future__ import annotations

import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from action_export.precision import half
from onnx import TensorProto, helper

LAYERS, SIDE = 24, 2048
LAYER_BYTES = 4 * SIDE * SIDE


def growth_of_half(folder: Path) -> int:
    """Bytes that writing the network in half precision adds to the peak of this process."""
    _half_of(folder, layers=1, side=8)  # imports everything
    before = _peak()
    _half_of(folder, layers=LAYERS, side=SIDE)
    return _peak() - before


def _half_of(folder: Path, *, layers: int, side: int) -> None:
    names = ["x", *(f"x{number}" for number in range(layers))]
    nodes = [
        helper.make_node("Cast", ["clips"], ["x"], name="cast", to=TensorProto.FLOAT),
        *(
            helper.make_node("Sin", [before], [after], name=after)
            for before, after in pairwise(names)
        ),
        helper.make_node("ReduceMax", [names[-1]], ["scores"], name="max", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("clips", TensorProto.UINT8, [side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    exact = folder / f"deep{layers}.onnx"
    onnx.save(model, str(exact))
    half(exact, exact.with_suffix(".half"), [np.zeros((side, side), np.uint8)])


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
