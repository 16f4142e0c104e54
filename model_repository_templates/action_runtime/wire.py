"""What a client sends of its frames: no larger than the model takes, as pixels or as JPEG."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from . import jpeg, transforms
from .spec import Contract, Resize
from .transforms import Frames


def shrink(frames: Frames, resize: Resize | None) -> Frames:
    """[F, H, W, C] as the server would resize them, where that makes them smaller; else unchanged.

    The server resizes what it gets; it leaves these as they are only if their size is a fixed point
    of the resize, so that is checked. An interpolation that is missing here is left to the server.
    """
    height, width = frames.shape[1:3]
    small = transforms.target_size(height, width, resize)
    if min(small) < 1 or small[0] * small[1] >= height * width:
        return frames
    if transforms.target_size(*small, resize) != small:
        return frames
    try:
        return transforms.resize(frames, resize)
    except transforms.OpenCVMissingError:
        return frames


def pack(frames: Frames, contract: Contract) -> NDArray[Any]:
    """The tensor `contract.frames_tensor`: uint8 [F, H, W, C], or a file of each frame, bytes [F].

    Raises:
        OpenCVMissingError: the files need OpenCV.
    """
    return frames if contract.wire is None else jpeg.encode(frames, contract.wire)
