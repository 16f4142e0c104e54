"""A model as Triton's openvino backend compiles it: for the stand-in, and for an export's proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from action_export.dependencies import import_openvino

PRECISION = "INFERENCE_PRECISION_HINT"
"""OpenVINO's name of what `HINT_BF16` sets."""

SLOW_BF16 = (
    "HINT_BF16 is followed on a CPU that has no bf16, and takes longer than float32 would; take it "
    "out of config.pbtxt"
)
"""Of a CPU with AVX-512 alone: 2.9 times as long, in OpenVINO 2026.4."""

_NUMBER = "a non-negative number"
# The parameters of src/openvino.cc of openvino_backend that are properties of OpenVINO by the same
# name, and their values, whose case does not matter.
_PROPERTIES: Mapping[str, tuple[str, ...]] = {
    "INFERENCE_NUM_THREADS": (_NUMBER,),
    "COMPILATION_NUM_THREADS": (_NUMBER,),
    "NUM_STREAMS": ("AUTO", "NUMA", _NUMBER),
    "PERFORMANCE_HINT": ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"),
}


def has_bf16(*, hinted: bool = False) -> bool:
    """Whether OpenVINO computes in bf16 on this CPU, by itself or because it is `hinted` to.

    It is asked of a model, as the hint reaches CPUs that have no instruction for it, too: with
    AVX-512 OpenVINO then widens and rounds around float32, and takes longer than in float32.
    """
    openvino = import_openvino()
    from openvino import opset1

    value = opset1.parameter([1], openvino.Type.f32)
    model = openvino.Model([opset1.relu(value)], [value])
    settings = {PRECISION: "bf16"} if hinted else {}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return bool(compiled.get_property(PRECISION) == openvino.Type.bf16)


def read(path: Path) -> Any:
    """The model of an IR or ONNX file. Raises what OpenVINO raises."""
    return import_openvino().Core().read_model(path)


def compiled(model: Any, config: Mapping[str, Any], precision: str | None = None) -> Any:
    """The model for the batch and the parameters of a config.pbtxt, as JSON.

    precision: "f32" or "bf16" in place of what the config says. It says float32 unless HINT_BF16
    is YES: the official backend then leaves it to OpenVINO, which takes bf16 where the CPU has it.

    Raises:
        ValueError: a parameter has a value that the official backend refuses.
    """
    openvino = import_openvino()
    settings = properties(config)
    if precision is not None:
        settings[PRECISION] = precision
    return openvino.Core().compile_model(_batched(model, config), "CPU", settings)


def properties(config: Mapping[str, Any]) -> dict[str, str]:
    """OpenVINO's properties for `parameters`. Raises ValueError for a value that it refuses."""
    given = {
        key: str(value.get("string_value", ""))
        for key, value in config.get("parameters", {}).items()
    }
    found = {PRECISION: "f32"}
    for key, values in _PROPERTIES.items():
        value = given.get(key, "").upper()
        if not value:
            continue
        if (_NUMBER if value.isdecimal() else value) not in values:
            raise ValueError(
                f"expected the parameter '{key}' to be {' or '.join(values)}, got {value.lower()}"
            )
        found[key] = value
    hint = given.get("HINT_BF16", "").lower()
    if hint not in ("", "yes"):
        raise ValueError(f"expected the parameter 'HINT_BF16' to be YES, got {hint}")
    if hint:
        found[PRECISION] = "bf16"
    return found


def _batched(model: Any, config: Mapping[str, Any]) -> Any:
    """With the types of the config, and a batch of max_batch_size; 0 leaves the shapes alone."""
    openvino = import_openvino()
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(model)
    size = int(config.get("max_batch_size", 0))
    for tensor in config["input"]:
        view = processor.input(tensor["name"]).tensor()
        view.set_element_type(element_type(tensor))
        if size:
            view.set_layout(openvino.Layout("N..."))
    for tensor in config["output"]:
        processor.output(tensor["name"]).tensor().set_element_type(element_type(tensor))
    built = processor.build()
    if size:
        openvino.set_batch(built, size)
    return built


def element_type(tensor: Mapping[str, Any]) -> Any:
    """OpenVINO's type for a data_type of config.pbtxt. ValueError: the backend has none."""
    openvino = import_openvino()
    name = _TYPES.get(tensor["data_type"])
    if name is None:
        raise ValueError(f"unsupported datatype {tensor['data_type']} for '{tensor['name']}'")
    return getattr(openvino.Type, name)


_TYPES = {
    "TYPE_BOOL": "boolean",
    "TYPE_UINT8": "u8",
    "TYPE_UINT16": "u16",
    "TYPE_UINT32": "u32",
    "TYPE_UINT64": "u64",
    "TYPE_INT8": "i8",
    "TYPE_INT16": "i16",
    "TYPE_INT32": "i32",
    "TYPE_INT64": "i64",
    "TYPE_FP16": "f16",
    "TYPE_FP32": "f32",
}
