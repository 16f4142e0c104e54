"""What a published model needs in the serving image beyond what NVIDIA puts there."""

from __future__ import annotations

from action_runtime.interpolation import RESAMPLERS
from action_runtime.spec import Contract

DOCKERFILE = "Dockerfile"
"""In the version folder of the preprocess model, where the stock image is not enough."""

OPENCV = "4.11.0.86"
"""The release of opencv-python-headless whose pixels the tests hold to mmaction2's."""


def needs_opencv(contract: Contract) -> bool:
    """Whether the preprocess model does not load without OpenCV."""
    return contract.wire is not None or (
        contract.resize is not None and contract.resize.interpolation not in RESAMPLERS
    )


def image_notes(contract: Contract, dockerfile: str) -> tuple[str, ...]:
    """dockerfile: where it is published, for a shell."""
    if not needs_opencv(contract):
        return ()
    return (
        "NVIDIA's image lacks OpenCV, without which this model does not load, and a server that "
        "is not told --exit-on-error=false ends: build an image that has it with docker build -t "
        f"tritonserver-opencv - < {dockerfile}",
    )
