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
6. What the decoder finds damaged between a needed frame's keyframe and the last picture that this
   frame may refer to is an error, and the same file gives the same frames or error each time.
   Damage that makes another valid picture can be told by nobody: these formats hold no checksums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .limits import DEFAULT, Budget, Limits
from .limits import VideoError as VideoError
from .sampling import Plan
from .transforms import Frames
from .video_file import DamagedError, Source, failures, reason, source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.filter import Graph
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

T = TypeVar("T")
Convert = Callable[[Frames], Frames]
ToRgb = Callable[["VideoFrame"], Frames]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What sampling needs to know. fps is the average frame rate; None where it is unknown."""

    total_frames: int
    fps: float | None


Choose = Callable[[VideoInfo], Plan]


def read_frames(
    path: Path, choose: Choose, convert: Convert | None = None, limits: Limits = DEFAULT
) -> tuple[Plan, Frames]:
    """Decodes only up to the last frame of the plan, and keeps only the frames of the plan.

    Args:
        path: a file in a format of the limits.
        choose: which frames to take; asked again when decoding shows another length.
        convert: applied to each frame by itself, [1, H, W, 3] to [1, h, w, 3], as it is decoded, so
            that full-size frames never pile up.
        limits: what the file may cost.

    Returns:
        The plan, and its frames: uint8 RGB [len(plan.frame_numbers), h, w, 3].

    Raises:
        VideoError: no such file, not a video, no frames, cut short, or damaged where it matters.
        VideoLimitError: beyond the limits.
    """
    with source(path, limits) as file:
        return read_source(file, choose, convert)


def read_source(
    file: Source, choose: Choose, convert: Convert | None = None, to_rgb: ToRgb | None = None
) -> tuple[Plan, Frames]:
    """As `read_frames`, of a file that is open.

    to_rgb: a decoded picture as uint8 RGB [H, W, 3]; None does it as decord.
    """
    info, index = _scan(file)

    def collect(found: Iterator[VideoFrame], plan: Plan) -> Frames:
        pictures = _rgb(found, to_rgb or _RgbConverter(), file.budget)
        return collect_frames(pictures, len(plan.frame_numbers), convert, file.budget)

    try:
        return _read(file, info, index, choose, collect)
    except DamagedError as exc:
        raise VideoError(
            f"{file.path} is damaged: {_whole_frames(file)} of its {info.total_frames} frames can "
            f"be decoded, and later ones are needed ({exc})",
            hint=_REPAIR_HINT,
        ) from exc


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Header:
    """What a container says of its pictures before any is decoded.

    announced: its count of them; 0 where it has none. bits: of one sample of a picture's pixels.
    is_first: the best video stream, which is read here, is also the first one.
    as_decord: the pixels are decord's to the byte. They are not where FFmpeg 4.1, which decord is
        built on, rounds otherwise: MPEG-4 and its kin in dequantisation, and swscale where it
        interpolates rows of chroma (4:2:0 of more than 8 bits, or of odd height).
    seconds: when each frame is shown, ascending from 0, where frames can be found by that; else
        None.
    """

    announced: int
    bits: int
    is_first: bool
    as_decord: bool
    seconds: NDArray[np.float64] | None


_MPEG4_AND_KIN = ("mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "flv1", "wmv1", "wmv2")


def examine(file: Source) -> Header:
    """Raises VideoError and VideoLimitError as `read_frames` does."""
    _, index = _scan(file)
    with file.opened() as (container, stream):
        seconds = None
        if index is not None and index.seekable and stream.time_base is not None:
            seconds = (index.pts - index.pts[0]) * float(stream.time_base)
        picture = stream.format
        bits = max((part.bits for part in picture.components), default=8) if picture else 8
        halved = picture is not None and picture.chroma_height(16) < 16
        return Header(
            announced=stream.frames,
            bits=bits,
            is_first=stream.index == container.streams.video[0].index,
            as_decord=stream.codec.canonical_name not in _MPEG4_AND_KIN
            and not (halved and (bits > 8 or stream.height % 2)),
            seconds=seconds,
        )


def _read(
    file: Source,
    info: VideoInfo,
    index: _Index | None,
    choose: Choose,
    collect: Callable[[Iterator[VideoFrame], Plan], Frames],
) -> tuple[Plan, Frames]:
    """DamagedError where frames that are needed are not whole."""
    if index is not None:
        plan = choose(info)
        for thrifty in (True, False) if index.seekable else (False,):
            try:
                return plan, _with_care(
                    lambda careful, thrifty=thrifty: collect(  # type: ignore[misc]
                        _frames_by_index(file, index, plan.frame_numbers, thrifty, careful), plan
                    )
                )
            except _NotAsIndexedError:
                continue
    total = _with_care(lambda careful: _count_frames(file, careful))
    if index is not None and index.seekable and total < info.total_frames:
        raise DamagedError(f"{info.total_frames - total} pictures are missing")
    plan = choose(replace(info, total_frames=total))
    return plan, _with_care(
        lambda careful: collect(_frames_by_count(file, plan.frame_numbers, careful), plan)
    )


def _with_care(read: Callable[[bool], T]) -> T:
    """What `read` gives, at once or, where there is damage, by careful decoding; see `_decode`."""
    try:
        return read(False)
    except DamagedError:
        return read(True)


class _NotAsIndexedError(Exception):
    """Decoding gave another frame than the packets announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packet:
    pts: int | None
    duration: int
    is_key: bool
    is_hidden: bool
    is_corrupt: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Index:
    """pts: presentation time of each frame, ascending. keys: numbers of the keyframes, ascending.
    reach: for each frame, the last number among those that are decoded up to it, which it may
    refer to. marked: numbers of the frames whose packets the container marks as damaged.

    A frame can be decoded from the last keyframe that is shown at or before it: what follows an
    open GOP's keyframe but is shown before it belongs to the GOP before.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    reach: NDArray[np.int64]
    marked: frozenset[int]
    seekable: bool

    def key_before(self, number: int) -> int:
        at = int(np.searchsorted(self.keys, number, side="right"))
        return int(self.keys[at - 1]) if at else 0

    def number_of(self, pts: int | None) -> int | None:
        if pts is None:
            return None
        at = int(np.searchsorted(self.pts, pts))
        return at if at < len(self.pts) and self.pts[at] == pts else None


def _scan(file: Source) -> tuple[VideoInfo, _Index | None]:
    """Length and frame rate, and the numbering of the frames; None where packets don't tell it."""
    with file.opened() as (container, stream):
        packets: list[_Packet] = []
        try:
            for packet in file.packets(container, stream):
                if packet.size:
                    file.budget.check_frames(len(packets) + 1)
                    packets.append(_noted(packet))
        except DamagedError as exc:
            raise VideoError(
                f"{file.path} cannot be read to its end ({exc})", hint=_REPAIR_HINT
            ) from exc
        shown = sum(not packet.is_hidden for packet in packets)
        if not shown:
            raise VideoError(
                f"{file.path} has a video stream without a single frame", hint=_REPAIR_HINT
            )
        _check_complete(file.path, stream, packets)
        fps = float(stream.average_rate) if stream.average_rate else None
        seekable = (
            container.format.name.split(",")[0] in _SEEKABLE_FORMATS
            and stream.codec.canonical_name in _SEEKABLE_CODECS
        )
    return VideoInfo(total_frames=shown, fps=fps), _index_of(packets, seekable=seekable)


def _noted(packet: Packet[VideoStream]) -> _Packet:
    return _Packet(
        pts=packet.pts,
        duration=packet.duration or 0,
        is_key=packet.is_keyframe,
        is_hidden=packet.is_discard,
        is_corrupt=packet.is_corrupt,
    )


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
    decoded = np.array([time for time, _ in shown], np.int64)
    pts = np.sort(decoded)
    numbers = np.searchsorted(pts, decoded)
    reach = np.empty_like(numbers)
    reach[numbers] = np.maximum.accumulate(numbers)
    keys = sorted(
        number for number, (_, p) in zip(numbers.tolist(), shown, strict=True) if p.is_key
    )
    return _Index(
        pts=pts,
        keys=np.array(keys, np.int64),
        reach=reach,
        marked=frozenset(
            number for number, (_, p) in zip(numbers.tolist(), shown, strict=True) if p.is_corrupt
        ),
        seekable=seekable,
    )


def _decode_with(stream: VideoStream, limits: Limits, *, careful: bool) -> None:
    """How the stream is decoded.

    At once: by several threads, which stop at what they find wrong. Where they do, carefully:
    FFmpeg then conceals damage and marks the frame, but only one thread does so the same way each
    time, and threads that share a picture do not at all. HEVC marks nothing, and VP8 stops at
    nothing in threads of whole pictures.
    """
    context = stream.codec_context
    context.options = {"max_pixels": str(limits.coded_pixels)}
    if careful:
        stream.thread_type, context.thread_count = "SLICE", 1
    else:
        context.options = context.options | {"err_detect": "explode"}
        shared = stream.codec.canonical_name in ("hevc", "vp8")
        stream.thread_type = "SLICE" if shared else "AUTO"


def _frames_by_index(
    file: Source, index: _Index, numbers: NDArray[np.int32], thrifty: bool, careful: bool
) -> Iterator[VideoFrame]:
    """The frames of these ascending numbers; _NotAsIndexedError if the index proves wrong.

    thrifty: jump, and leave out what no needed frame refers to.
    """
    with file.opened() as (container, stream):
        _decode_with(stream, file.budget.limits, careful=careful)
        needed = index.pts[numbers].tolist() if thrifty else None
        walk = _Walk(index, _Sieve(stream, needed), careful)
        walk.along(file.packets(container, stream))
        for wanted in numbers.tolist():
            key = index.key_before(wanted)
            if thrifty and key - walk.position > _FRAMES_WORTH_A_SEEK:
                walk.prove()
                if key > walk.position:
                    walk.along(*_jump(file, container, stream, index, key))
            yield walk.to(wanted)
        walk.prove()


class _Walk:
    """Decodes frames in order, each held to the index.

    position: number of the last frame that came.
    """

    def __init__(self, index: _Index, sieve: _Sieve, careful: bool) -> None:
        self.position = -1
        self._index, self._sieve = index, sieve
        self._frames: Iterator[VideoFrame] = iter(())
        self._frame: VideoFrame | None = None
        self._lost: set[int] | None = set() if careful else None
        self._marked = set(index.marked)
        self._unproved: list[int] = []

    def along(self, packets: Iterable[Packet[VideoStream]], after: int = -1) -> None:
        """after: the number before the first of these packets."""
        self._frames, self.position = _decoded(self._sieve(packets), self._lost), after

    def to(self, wanted: int) -> VideoFrame:
        """The frame of this number, whole as far as it is known; `prove` tells the rest."""
        while self.position < wanted:
            self._step()
        if self.position != wanted or self._frame is None:
            raise DamagedError("it is missing") if wanted in self._marked else _NotAsIndexedError
        self._unproved.append(wanted)
        return self._frame

    def prove(self) -> None:
        """Raises DamagedError unless all that was taken, and what that may refer to, is whole."""
        for number in self._unproved:
            reach = int(self._index.reach[number])
            while self.position < reach:
                self._step()
            key = self._index.key_before(number)
            if any(key <= marked <= reach for marked in self._marked):
                raise DamagedError("the decoder marks frames as damaged")
        self._unproved = []

    def _step(self) -> None:
        frame = next(self._frames, None)
        number = len(self._index.pts) if frame is None else self._index.number_of(frame.pts)
        if number is None or number <= self.position:
            raise _NotAsIndexedError
        for passed in range(self.position + 1, number):
            time = int(self._index.pts[passed])
            if self._lost and time in self._lost:
                self._marked.add(passed)
            elif time not in self._sieve.left_out:
                raise _NotAsIndexedError
        if frame is not None and frame.is_corrupt:
            self._marked.add(number)
        self._frame, self.position = frame, number


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
    file: Source, container: InputContainer, stream: VideoStream, index: _Index, key: int
) -> tuple[Iterator[Packet[VideoStream]], int]:
    """Packets from a keyframe at or before number `key` on, and the number before their first."""
    try:
        container.seek(int(index.pts[key]), stream=stream)
    except failures() as exc:
        raise _NotAsIndexedError from exc
    packets = file.packets(container, stream)
    first = next(packets, None)
    if first is None or first.pts is None or not first.is_keyframe:
        raise _NotAsIndexedError
    landed = index.number_of(first.pts)
    if landed is None or landed > key:
        raise _NotAsIndexedError
    # The decoder drops an open GOP's leading pictures, whose references were jumped over.
    return chain([first], packets), landed - 1


def _all_frames(file: Source, careful: bool) -> Iterator[VideoFrame]:
    """Every frame that comes out of the decoder. Raises DamagedError where it fails."""
    with file.opened() as (container, stream):
        _decode_with(stream, file.budget.limits, careful=careful)
        yield from _decoded(file.packets(container, stream))


def _frames_by_count(file: Source, numbers: Iterable[int], careful: bool) -> Iterator[VideoFrame]:
    wanted = iter(numbers)
    following = next(wanted, None)
    taken = marked = -_FARTHEST_REFERENCE
    key = 0
    for number, frame in enumerate(_all_frames(file, careful)):
        if following is None and (frame.key_frame or number - taken > _FARTHEST_REFERENCE):
            return
        key = number if frame.key_frame else key
        if frame.is_corrupt:
            marked = number
            if taken >= key and number - taken <= _FARTHEST_REFERENCE:
                raise DamagedError("the decoder marks frames as damaged")
        if number == following:
            if marked >= key:
                raise DamagedError("the decoder marks frames as damaged")
            taken, following = number, next(wanted, None)
            yield frame
    if following is not None:
        raise DamagedError("they are missing")


# What is shown after a frame may be decoded before it and referred to; the standards keep no more
# pictures than these (ITU-T H.264 and H.265, max_dec_frame_buffering).
_FARTHEST_REFERENCE = 16


def _decoded(
    packets: Iterable[Packet[VideoStream]], lost: set[int] | None = None
) -> Iterator[VideoFrame]:
    """lost: takes the times of packets that cannot be decoded, which else raise DamagedError."""
    for packet in packets:
        try:
            frames = packet.decode()
        except failures() as exc:
            if lost is None or packet.pts is None:
                raise DamagedError(reason(exc)) from exc
            lost.add(packet.pts)
        else:
            yield from frames


def _count_frames(file: Source, careful: bool) -> int:
    """Frames that come out of the decoder. Raises DamagedError where it fails."""
    total = sum(1 for _ in _all_frames(file, careful))
    if not total:
        raise VideoError(f"no frame of {file.path} can be decoded", hint=_REPAIR_HINT)
    return total


def _whole_frames(file: Source) -> int:
    """Frames before the first damage."""
    total = 0
    try:
        for frame in _all_frames(file, careful=True):
            if frame.is_corrupt:
                break
            total += 1
    except DamagedError:
        pass
    return total


def _rgb(
    frames: Iterator[VideoFrame], to_rgb: ToRgb, budget: Budget
) -> Iterator[tuple[int, Frames]]:
    for row, frame in enumerate(frames):
        budget.check_pixels(frame.width, frame.height)
        try:
            yield row, to_rgb(frame)
        except failures() as exc:
            raise DamagedError(reason(exc)) from exc


def collect_frames(
    pictures: Iterable[tuple[int, Frames]], count: int, convert: Convert | None, budget: Budget
) -> Frames:
    """RGB pictures [H, W, 3] by their rows, converted: [count, h, w, 3]."""
    out = None
    for row, picture in pictures:
        pixels = picture[None] if convert is None else convert(picture[None])
        if out is None:
            budget.check_memory(count * pixels.nbytes)
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
