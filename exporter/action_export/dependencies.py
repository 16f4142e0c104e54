"""The optional packages: each is imported where it is needed, and missed with the line to run."""

from __future__ import annotations

import importlib.util

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
