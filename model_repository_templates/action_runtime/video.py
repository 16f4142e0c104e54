"""The frames of a video file, exactly, numbered from 0 in the order in which they are shown.

The reference is what mmaction2 trains on: the length, frame rate and pixels of decord 0.6.0, which
is FFmpeg 4.1 behind a filter graph. Where decord itself contradicts the file, the file is right:
its random access returns other frames than asked for in open GOPs, MPEG-TS, MPEG-PS and AVI with
B-frames, and it counts frames that an edit list hides.

How a frame is found:

1. A pass over the packets, without decoding, numbers the frames by their presentation time.
2. Decoding checks every frame that comes out against that numbering, so a wrong one is noticed.
3. Where the needed frames lie far apart, decoding jumps to the keyframe before the next one.
4. H.264 pictures that are neither needed nor referred to are left out of decoding.
5. When check 2 fails, or packets carry no usable times, the frames are numbered by decoding them
   all, and then fetched in a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .sampling import Plan
from .transforms import Frames

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.filter import Graph
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Convert = Callable[[Frames], Frames]

# A jump can't be checked against what it jumps over, so every packet must be known to be a frame.
# These formats store a presentation time with each packet and an index of keyframes: FFmpeg makes
# up the times of AVI, and finds its way in MPEG-TS by bisecting bytes. These codecs have no packets
# without a picture, as MPEG-4 and VP8 do.
_SEEKABLE_FORMATS = ("mov", "matroska")
_SEEKABLE_CODECS = ("h264", "hevc", "vp9", "av1")

# A jump throws away what the decoder's threads have begun; below this it saved no time (H.264,
# 1280x720, two cores).
_FRAMES_WORTH_A_SEEK = 16

_REPAIR_HINT = "fetch the file again, or keep what is there: ffmpeg -i IN -c:v libx264 OUT.mp4"


class VideoError(ValueError):
    """The file is no video, or frames that are needed cannot be decoded from it.

    message: the fact. hint: what its owner can do.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What sampling needs to know. fps is the average frame rate; None where it is unknown."""

    total_frames: int
    fps: float | None


def read_frames(
    path: Path, choose: Callable[[VideoInfo], Plan], convert: Convert | None = None
) -> tuple[Plan, Frames]:
    """Decodes only up to the last frame of the plan, and keeps only the frames of the plan.

    Args:
        path: a file in any format that FFmpeg knows.
        choose: which frames to take; asked again when decoding shows another length.
        convert: applied to each frame by itself, [1, H, W, 3] to [1, h, w, 3], as it is decoded, so
            that full-size frames never pile up.

    Returns:
        The plan, and its frames: uint8 RGB [len(plan.frame_numbers), h, w, 3].

    Raises:
        VideoError: no such file, not a video, no frames, cut short, or damaged where it matters.
    """
    import av

    _check_file(path)
    info, index = _scan(path)
    try:
        if index is not None:
            plan = choose(info)
            for thrifty in (True, False) if index.seekable else (False,):
                try:
                    found = _frames_by_index(path, index, plan.frame_numbers, thrifty)
                    return plan, _collect(found, len(plan.frame_numbers), convert)
                except _NotAsIndexedError:
                    continue
        info = replace(info, total_frames=_count_frames(path))
        plan = choose(info)
        found = _frames_by_count(path, plan.frame_numbers)
        return plan, _collect(found, len(plan.frame_numbers), convert)
    except av.error.FFmpegError as exc:
        raise VideoError(
            f"{path} is damaged: {_decodable_frames(path)} of its {info.total_frames} frames can "
            f"be decoded, and later ones are needed ({exc.strerror})",
            hint=_REPAIR_HINT,
        ) from exc


class _NotAsIndexedError(Exception):
    """Decoding gave another frame than the packets announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packet:
    pts: int | None
    duration: int
    is_key: bool
    is_hidden: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Index:
    """pts: presentation time of each frame, ascending. keys: numbers of the keyframes, ascending.

    A frame can be decoded from the last keyframe that is shown at or before it: what follows an
    open GOP's keyframe but is shown before it belongs to the GOP before.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    seekable: bool

    def key_before(self, number: int) -> int:
        at = int(np.searchsorted(self.keys, number, side="right"))
        return int(self.keys[at - 1]) if at else 0

    def number_of(self, pts: int) -> int | None:
        at = int(np.searchsorted(self.pts, pts))
        return at if at < len(self.pts) and self.pts[at] == pts else None


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except FileNotFoundError as exc:
        raise VideoError(f"{path} does not exist", hint="check the path") from exc
    except IsADirectoryError as exc:
        raise VideoError(f"{path} is a directory", hint="name the video file itself") from exc
    except OSError as exc:
        raise VideoError(f"{path} cannot be read: {exc.strerror}", hint="check the path") from exc
    if not first:
        raise VideoError(f"{path} is empty", hint="fetch the file again")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    import av
    from av.stream import Disposition
    from av.video.stream import VideoStream

    try:
        # A playlist must not make a service fetch what its author points at. (With `options`
        # PyAV 14 to 16 crash on MPEG program streams.)
        container = av.open(str(path), container_options={"protocol_whitelist": "file"})
    except av.error.FFmpegError as exc:
        raise VideoError(
            f"{path} is not a video that FFmpeg can read, or is cut short ({exc.strerror})",
            hint="try `ffprobe` on it; an MP4 without its end has lost its index",
        ) from exc
    with container:
        stream = container.streams.best("video")
        # A cover picture in a music file counts as video for FFmpeg.
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise VideoError(f"{path} has no video stream", hint="choose a file with a picture")
        if stream.codec_context is None:
            raise VideoError(
                f"{path} is in a codec that this build of FFmpeg cannot decode",
                hint="convert it: ffmpeg -i IN -c:v libx264 OUT.mp4",
            )
        yield container, stream


def _scan(path: Path) -> tuple[VideoInfo, _Index | None]:
    """Length and frame rate, and the numbering of the frames; None where packets don't tell it."""
    import av

    with _opened(path) as (container, stream):
        try:
            packets = [
                _Packet(
                    pts=packet.pts,
                    duration=packet.duration or 0,
                    is_key=packet.is_keyframe,
                    is_hidden=packet.is_discard,
                )
                for packet in container.demux(stream)
                if packet.size
            ]
        except av.error.FFmpegError as exc:
            raise VideoError(
                f"{path} cannot be read to its end ({exc.strerror})", hint=_REPAIR_HINT
            ) from exc
        shown = sum(not packet.is_hidden for packet in packets)
        if not shown:
            raise VideoError(f"{path} has a video stream without a single frame", hint=_REPAIR_HINT)
        _check_complete(path, stream, packets)
        fps = float(stream.average_rate) if stream.average_rate else None
        seekable = (
            container.format.name.split(",")[0] in _SEEKABLE_FORMATS
            and stream.codec.canonical_name in _SEEKABLE_CODECS
        )
    return VideoInfo(total_frames=shown, fps=fps), _index_of(packets, seekable=seekable)


def _check_complete(path: Path, stream: VideoStream, packets: Sequence[_Packet]) -> None:
    """Refuses a file that ends before what its header announces.

    Fewer frames than announced are no proof, since an edit list can leave some out; but then the
    duration is shorter too.
    """
    ends = [p.pts + p.duration for p in packets if p.pts is not None]
    if stream.frames <= len(packets) or not ends or not stream.duration:
        return
    typical = sorted(packet.duration for packet in packets)[len(packets) // 2]
    if max(ends) + typical < (stream.start_time or 0) + stream.duration:
        raise VideoError(
            f"{path} is cut short: its header announces {stream.frames} frames, and only "
            f"{len(packets)} can be read",
            hint=_REPAIR_HINT,
        )


def _index_of(packets: Sequence[_Packet], *, seekable: bool) -> _Index | None:
    times = [packet.pts for packet in packets if packet.pts is not None]
    if len(set(times)) < len(packets):
        return None
    # Frames before the first keyframe can't be decoded, and how many there are only decoding tells.
    if not packets[0].is_key or times[0] != min(times):
        return None
    shown = [(time, p) for time, p in zip(times, packets, strict=True) if not p.is_hidden]
    pts = np.array(sorted(time for time, _ in shown), np.int64)
    keys = np.array(sorted(time for time, p in shown if p.is_key), np.int64)
    return _Index(pts=pts, keys=np.searchsorted(pts, keys), seekable=seekable)


def _frames_by_index(
    path: Path, index: _Index, numbers: NDArray[np.int32], thrifty: bool
) -> Iterator[VideoFrame]:
    """The frames of these ascending numbers; _NotAsIndexedError if the index proves wrong.

    thrifty: jump, and leave out what no needed frame refers to.
    """
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        sieve = _Sieve(stream, index.pts[numbers].tolist() if thrifty else None)
        frames, position = _decoded(sieve(container.demux(stream))), -1
        for wanted in numbers:
            key = index.key_before(wanted)
            if thrifty and key - position > _FRAMES_WORTH_A_SEEK:
                packets, position = _jump(container, stream, index, key)
                frames = _decoded(sieve(packets))
            frame = None
            while position < wanted:
                frame = next(frames, None)
                position += 1
                while position < wanted and index.pts[position] in sieve.left_out:
                    position += 1
                if frame is None or frame.pts != index.pts[position]:
                    raise _NotAsIndexedError
            assert frame is not None
            yield frame


class _Sieve:
    """Lets through the packets that the needed frames depend on, and notes the others' times.

    H.264 marks pictures that no other one refers to (nal_ref_idc 0, ITU-T H.264 7.4.1), mostly
    B-frames. The decoder's own skip_frame=NONREF would leave out the same ones, but doesn't tell
    them from those that it fails to decode. HEVC's mark holds for one temporal layer only.
    """

    def __init__(self, stream: VideoStream, needed: Iterable[int] | None) -> None:
        """needed: presentation times of the needed frames; None lets every packet through."""
        self.left_out: set[int] = set()
        self._needed = frozenset(needed or ())
        header = stream.codec_context.extradata or b""
        # Only headers of this kind ("avcC", version 1) go with lengths before the units.
        fits = stream.codec.canonical_name == "h264" and len(header) > 4 and header[0] == 1
        self._length_bytes = (header[4] & 3) + 1 if fits and needed is not None else 0

    def __call__(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
        if not self._length_bytes:
            yield from packets
            return
        for packet in packets:
            if packet.pts is None or packet.pts in self._needed or not self._is_spare(packet):
                yield packet
            else:
                self.left_out.add(packet.pts)

    def _is_spare(self, packet: Packet[VideoStream]) -> bool:
        """Whether it has nothing but slices of a picture that no other one refers to."""
        data, at = memoryview(packet), 0
        while at + self._length_bytes < len(data):
            start = at + self._length_bytes
            if data[start] != _SPARE_SLICE:
                return False
            at = start + int.from_bytes(data[at:start], "big")
        return at == len(data) > 0


# forbidden_zero_bit 0, nal_ref_idc 0, nal_unit_type 1: a slice outside of an IDR picture
_SPARE_SLICE = 0b0_00_00001


def _jump(
    container: InputContainer, stream: VideoStream, index: _Index, key: int
) -> tuple[Iterator[Packet[VideoStream]], int]:
    """Packets from a keyframe at or before number `key` on, and the number before their first."""
    container.seek(int(index.pts[key]), stream=stream)
    packets = container.demux(stream)
    first = next(packets, None)
    if first is None or first.pts is None or not first.is_keyframe:
        raise _NotAsIndexedError
    landed = index.number_of(first.pts)
    if landed is None or landed > key:
        raise _NotAsIndexedError
    # The decoder drops an open GOP's leading pictures, whose references were jumped over.
    return chain([first], packets), landed - 1


def _frames_by_count(path: Path, numbers: Iterable[int]) -> Iterator[VideoFrame]:
    with _opened(path) as (container, stream):
        frames = enumerate(_decoded(container.demux(stream)))
        for wanted in numbers:
            yield next(frame for number, frame in frames if number == wanted)


def _decoded(packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
    for packet in packets:
        yield from packet.decode()


def _count_frames(path: Path) -> int:
    """Frames that come out of the decoder; av.error.FFmpegError where it fails."""
    with _opened(path) as (container, stream):
        total = sum(1 for _ in _decoded(container.demux(stream)))
    if not total:
        raise VideoError(f"no frame of {path} can be decoded", hint=_REPAIR_HINT)
    return total


def _decodable_frames(path: Path) -> int:
    """Frames before the first decoding error."""
    import av

    total = 0
    with _opened(path) as (container, stream):
        try:
            for _ in _decoded(container.demux(stream)):
                total += 1
        except av.error.FFmpegError:
            pass
    return total


def _collect(frames: Iterator[VideoFrame], count: int, convert: Convert | None) -> Frames:
    to_rgb, out = _RgbConverter(), None
    for row, frame in enumerate(frames):
        pixels = to_rgb(frame)[None]
        if convert is not None:
            pixels = convert(pixels)
        if out is None:
            out = np.empty((count, *pixels.shape[1:]), np.uint8)
        out[row] = pixels[0]
    assert out is not None
    return out


class _RgbConverter:
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
