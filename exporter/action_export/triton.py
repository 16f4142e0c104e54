"""What a release of Triton can load: the facts that depend on --triton-version."""

from __future__ import annotations

import re

from action_export.errors import UnsupportedError

# Highest ONNX opset by release: ONNX Runtime 1.16 (opset 19) or later since 23.10, 1.19 (opset 21)
# or later since 24.10. Releases between may read more; what is not certain is not promised.
_OPSETS = {(23, 10): 19, (24, 10): 21}

# The Python backend's TritonError takes a status code since 23.09 (python_backend, README.md,
# "Error Handling"); a bad request is answered with one.
OLDEST = (23, 10)


def check_release(version: str, opset: int) -> None:
    """Raises UnsupportedError where the release cannot load what would be written."""
    match = re.fullmatch(r"(\d\d)\.(\d\d)", version)
    if match is None:
        raise UnsupportedError(
            f"{version!r} is no Triton release",
            hint="write year.month, as in --triton-version 24.10",
        )
    release = (int(match[1]), int(match[2]))
    if release < OLDEST:
        raise UnsupportedError(
            f"Triton {version} is older than {OLDEST[0]}.{OLDEST[1]}, the first that answers bad "
            "requests with a status code",
            hint="serve with a newer release",
        )
    highest = max(limit for first, limit in _OPSETS.items() if first <= release)
    if opset > highest:
        raise UnsupportedError(
            f"the ONNX Runtime of Triton {version} reads opset {highest} at most, not {opset}",
            hint=f"--opset {highest} or lower, or a newer --triton-version",
        )
