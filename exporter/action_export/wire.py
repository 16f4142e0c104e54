"""Frames that travel as JPEG: what is refused, and how much it may change the scores."""

from __future__ import annotations

from action_runtime.spec import Contract, Jpeg

from action_export.errors import UnsupportedError
from action_export.types import ExportRequest, Modality

# The largest number in the tables of Annex K of ITU-T T.81, at quality 50; it is one of luma.
_LARGEST_STEP = 121
# Coefficients of 8-bit samples go from -1024 to 1023.
_COEFFICIENT = 1024
# The scores may change by this many times the relative error of the input. Half floats and bytes
# are allowed 40 times that of one rounding, as every layer rounds; here only the input is rounded.
_GAIN = 10
# Its bound is 0.30 of the spread. Much beyond, nothing that softmax gives could break the bound.
_LOWEST = 75


def check_wire(request: ExportRequest) -> None:
    """Raises UnsupportedError for a quality without JPEG, and for one that there is not."""
    quality = request.jpeg_quality
    if quality is not None and request.wire != "jpeg":
        raise UnsupportedError(
            f"--jpeg-quality {quality} is for --wire jpeg, not {request.wire}",
            hint="leave one of them out",
        )
    if quality is not None and not _LOWEST <= quality <= 100:
        raise UnsupportedError(
            f"a JPEG quality goes from {_LOWEST} to 100 here, and is not {quality}: the bound of a "
            "lower one proves next to nothing",
            hint="--jpeg-quality 95",
        )


def wire_of(request: ExportRequest, modality: Modality) -> Jpeg | None:
    """What the contract will say. Raises UnsupportedError for JPEG of optical flow."""
    if request.wire == "raw":
        return None
    if modality != "RGB":
        raise UnsupportedError(
            "--wire jpeg is for RGB frames, and the model takes optical flow, of 2 channels",
            hint="--wire raw",
        )
    return Jpeg() if request.jpeg_quality is None else Jpeg(quality=request.jpeg_quality)


def bound_of(wire: Jpeg | None) -> float:
    """How much of their spread over the classes the scores may change; 0 for pixels.

    Encoding rounds each coefficient to a multiple of its step, which is off by half the step at
    most. Relative to the largest coefficient that is the error of the input, and the bound ten
    times that: 0.059 at quality 95, 0.12 at 90, 0.0049 at 100. Nothing is allowed for the halved
    chroma, so it is what the bounds of the highest qualities are missed by.
    """
    return 0.0 if wire is None else _GAIN * _step(wire.quality) / 2 / _COEFFICIENT


def _step(quality: int) -> int:
    """The largest step of a quality: jpeg_quality_scaling and jpeg_add_quant_table of libjpeg."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return min(255, max(1, (_LARGEST_STEP * percent + 50) // 100))


def wire_notes(contract: Contract) -> tuple[str, ...]:
    """What a user of JPEG must know."""
    if contract.wire is None:
        return ()
    return (
        f"frames travel as JPEG of quality {contract.wire.quality}, which is lossy: what that "
        "costs is what the live server was off by, and without one it is not measured",
        "JPEG is decoded with OpenCV: pip install opencv-python-headless in the serving image",
    )


LOSSY_HINT = (
    "nothing was published; --wire raw, or a higher --jpeg-quality, which helps up to 95: beyond "
    "it, most of the loss is that chroma is halved. What --wire raw does not mend, please report"
)
