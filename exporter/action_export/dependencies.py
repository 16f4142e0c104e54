"""The optional packages: each is imported where it is needed, and missed with the line to run."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from action_export.errors import DependencyError

EXPORT = (
    "torch",
    "mmaction",
    "mmengine",
    "mmcv",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "jinja2",
    "rich",
)
"""What the extra `export` brings, by import name."""


def require(*modules: str, extra: str) -> None:
    """Raises DependencyError, with the pip line, for the first module that is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise DependencyError(
                f"the Python package {module} is not installed",
                hint=f'pip install "action-export[{extra}]"',
            )


NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
"""With this variable in its environment, onnxruntime writes and sends nothing about its use.

Without it, 1.32 makes a device id and a database of events in the user's cache folder when it is
imported, and looks up where to send them (tried). There is no other switch. Those who set the
variable themselves have decided.
"""


def turn_telemetry_off() -> None:
    """Of onnxruntime and openvino; before either is imported in this process."""
    os.environ.setdefault(*NO_TELEMETRY)
    # To import openvino makes an id in the user's home and sends an event, in 2026.4 (tried). It
    # does without this package where there is none, and None here says that there is none.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def import_onnxruntime() -> Any:
    """onnxruntime, with its telemetry off. Nothing else in a process imports it first."""
    turn_telemetry_off()
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """openvino, with its telemetry off. Nothing else in a process imports it first."""
    turn_telemetry_off()
    import openvino

    return openvino
