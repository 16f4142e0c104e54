"""Decoded pictures as decord gives them: RGB, upright, all of one size."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .transforms import Frames

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame


class RgbConverter:
    """Decoded pictures to upright uint8 RGB [H, W, 3], all of the first one's size.

    The filter chain is decord's, because frame.to_ndarray(format="rgb24") gives other pixels for
    interlaced pictures and knows no rotation.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._made_for: tuple[int, int, str] | None = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: VideoFrame) -> Frames:
        kind = (frame.width, frame.height, frame.format.name)
        if self._graph is None or kind != self._made_for:
            self._graph, self._made_for = self._make_graph(frame), kind
        self._graph.vpush(frame)
        pixels: NDArray[Any] = self._graph.vpull().to_ndarray()
        return pixels

    def _make_graph(self, frame: VideoFrame) -> Graph:
        from av.filter import Graph

        turns = _TURNS.get(-frame.rotation % 360, ())
        width, height = frame.width, frame.height
        if len(turns) == 1:
            width, height = height, width
        # A stream may change its resolution; decord scales to that of the first frame.
        self._size = self._size or (width, height)
        scale = f"{self._size[0]}:{self._size[1]}:flags=bilinear"
        if frame.format.chroma_height(16) < 16:
            # Where swscale interpolates chroma (10 bits, odd heights), FFmpeg 4.1 rounded its
            # weights, which is half a row's shift. Even 8-bit frames don't come this way.
            scale += ":in_v_chr_pos=256"
        graph = Graph()
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base,
            ),
            *(graph.add("transpose", direction) for direction in turns),
            graph.add("scale", scale),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        for node, following in pairwise(nodes):
            node.link_to(following)
        graph.configure()
        return graph


# By the degrees clockwise that a picture must be turned to stand upright.
_TURNS = {90: ("clock",), 180: ("clock", "clock"), 270: ("cclock",)}
