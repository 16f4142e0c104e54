"""The optical flow of a video, as the images that flow datasets keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_export.errors import VideoError, first_line

GreyFrame = NDArray[np.uint8]
FlowImage = NDArray[np.uint8]
"""[H, W, 2]: motion along x and y in grey levels, see `quantise`."""

# pixels per frame; mmaction2's tools/data/build_rawframes.py runs denseflow with -b=20
_BOUND = 20.0


def flow_images(video: Path, numbers: Iterable[int]) -> dict[int, FlowImage]:
    """The flow from frame i to frame i + 1, for each number i.

    The last frame has no next one; it, and a number beyond it, repeats the flow before it.

    Raises:
        VideoError: fewer than two frames, or a frame that cannot be decoded.
    """
    import av
    import cv2

    wanted = set(numbers)
    images: dict[int, FlowImage] = {}
    pair = None
    try:
        for number, pair in enumerate(pairwise(_grey_frames(video))):
            if number in wanted:
                images[number] = _flow_image(*pair)
            if number >= max(wanted):
                break
        if pair is None:
            raise VideoError(
                f"{video} has fewer than two frames, and optical flow is between two",
                hint="prove on other videos with --videos",
            )
        beyond = wanted - images.keys()
        return images | (dict.fromkeys(beyond, _flow_image(*pair)) if beyond else {})
    except (av.error.FFmpegError, cv2.error) as exc:
        raise VideoError(
            f"{video} has no optical flow that can be computed: {first_line(exc)}",
            hint="prove on other videos with --videos",
        ) from exc


def _flow_image(frame: GreyFrame, following: GreyFrame) -> FlowImage:
    import cv2

    # The datasets' TV-L1 is in opencv-contrib only. Of OpenCV's own two, dense inverse search
    # (Kroeger et al., 2016) follows larger motion than Farneback's method, in half the time.
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return quantise(search.calc(frame, following, None))


def quantise(flow: NDArray[np.float32]) -> FlowImage:
    """Pixels per frame to grey levels: -20 and less is 0, none is 128, 20 and more is 255.

    The formula is `convertFlowToImage` of denseflow (github.com/open-mmlab/denseflow), which
    rounds half to even.
    """
    share = (np.clip(flow, -_BOUND, _BOUND) + _BOUND) / (2 * _BOUND)
    image: FlowImage = np.rint(255 * share).astype(np.uint8)
    return image


def _grey_frames(video: Path) -> Iterator[GreyFrame]:
    import av

    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            # PyAV's rows may have gaps, which OpenCV's search does not take
            yield np.ascontiguousarray(frame.to_ndarray(format="gray"), np.uint8)
