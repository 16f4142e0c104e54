"""Frames that travel as JPEG: what is refused, and how much it may change the scores."""

from __future__ import annotations

from typing import Any

from action_runtime import wire
from action_runtime.spec import Contract, Jpeg
from action_runtime.transforms import Frames
from numpy.typing import NDArray

from action_export.errors import ParityError, UnsupportedError
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
# With full chroma it takes as many bytes as quality 95 with halved chroma, which broke its bound.
_DEFAULT = 90


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
            hint=f"--jpeg-quality {_DEFAULT}",
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
    return Jpeg(quality=request.jpeg_quality or _DEFAULT, chroma="full")


def bound_of(wire: Jpeg | None) -> float:
    """How much of their spread over the classes the scores may change; 0 for pixels.

    Encoding rounds each coefficient to a multiple of its step, which is off by half the step at
    most. Relative to the largest coefficient that is the error of the input, and the bound ten
    times that: 0.12 at quality 90, 0.059 at 95, 0.0049 at 100. Nothing is allowed for a colour that
    is stored in fewer places than it has, which is why chroma is not halved.
    """
    return 0.0 if wire is None else _GAIN * _step(wire.quality) / 2 / _COEFFICIENT


def pack_as_stated(frames: Frames, contract: Contract) -> NDArray[Any]:
    """What a client sends of decoded frames, [F, H, W, C], which is what the contract says.

    The bound of a quality is wide: files of a lower one could keep it. So their tables are read.

    Raises:
        ParityError: a file has other quantisation steps than its quality, or other chroma.
    """
    packed = wire.pack(wire.shrink(frames, contract.resize), contract)
    if contract.wire is None:
        return packed
    wanted = (_step(contract.wire.quality), contract.wire.chroma == "full")
    for file in packed:
        if (made := (coarsest_step(file), has_full_chroma(file))) != wanted:
            raise ParityError(
                "the JPEG encoder of this environment writes files with (largest step, full "
                f"chroma) {made}; the contract's quality {contract.wire.quality} has {wanted}",
                hint="nothing was published; install the opencv-python of the tested environment "
                "(constraints.txt), or --wire raw",
            )
    return packed


def coarsest_step(file: bytes) -> int:
    """The largest number in the quantisation tables of a JPEG file (ITU-T T.81, B.2.4.1)."""
    largest = 0
    for table in _segments(file, 0xDB):
        at = 0
        while at < len(table):
            size = 128 if table[at] >> 4 else 64
            numbers = table[at + 1 : at + 1 + size]
            steps = numbers if size == 64 else [256 * a + b for a, b in _pairs(numbers)]
            largest = max(largest, *steps)
            at += 1 + size
    return largest


def has_full_chroma(file: bytes) -> bool:
    """Whether all components of a baseline file have one sample a pixel (ITU-T T.81, B.2.2)."""
    (header,) = _segments(file, 0xC0)
    return {header[7 + 3 * component] for component in range(header[5])} == {0x11}


def _segments(file: bytes, marker: int) -> list[bytes]:
    """The contents of all segments of a kind before the first scan."""
    found, at = list[bytes](), 2
    while file[at + 1] != 0xDA:
        size = int.from_bytes(file[at + 2 : at + 4], "big")
        if file[at + 1] == marker:
            found.append(file[at + 4 : at + 2 + size])
        at += 2 + size
    return found


def _pairs(numbers: bytes) -> zip[tuple[int, int]]:
    return zip(numbers[::2], numbers[1::2], strict=True)


def _step(quality: int) -> int:
    """The largest step of a quality: jpeg_quality_scaling and jpeg_add_quant_table of libjpeg."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return min(255, max(1, (_LARGEST_STEP * percent + 50) // 100))


def wire_notes(contract: Contract) -> tuple[str, ...]:
    """What a user of JPEG must know."""
    if contract.wire is None:
        return ()
    return (
        f"frames travel as JPEG of quality {contract.wire.quality}, which is lossy: the proof "
        "measures what that costs on every proof video",
    )


LOSSY_HINT = (
    "nothing was published; --wire raw sends pixels, and another --jpeg-quality has another bound; "
    "what --wire raw does not mend, please report"
)
