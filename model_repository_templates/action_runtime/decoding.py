"""Frames by their numbers, or by count, each held to what the packets announced and to what the
decoder says of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .frame_index import Index
from .limits import Limits, VideoError
from .video_file import REPAIR_HINT, DamagedError, Source, failures, reason

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# A jump throws away what the decoder's threads have begun; below this it saved no time (H.264,
# 1280x720, two cores).
_FRAMES_WORTH_A_SEEK = 16


class NotAsIndexedError(Exception):
    """Decoding gave another frame than the packets announced."""


def _decode_with(stream: VideoStream, limits: Limits, *, careful: bool) -> None:
    """How the stream is decoded.

    At once: by several threads, which stop at what they find wrong. Where they do, carefully:
    FFmpeg then conceals damage and marks the frame, but only one thread does so the same way each
    time, and threads that share a picture do not at all. HEVC marks nothing, and VP8 stops at
    nothing in threads of whole pictures. MPEG-1 and MPEG-2 know only threads that share a picture,
    whose errors FFmpeg drops (mpeg12dec.c: what slice_decode_thread returns), so there is one.
    """
    context, codec = stream.codec_context, stream.codec.canonical_name
    context.options = {"max_pixels": str(limits.coded_pixels)}
    if careful:
        stream.thread_type, context.thread_count = "SLICE", 1
    else:
        context.options = context.options | {"err_detect": "explode"}
        stream.thread_type = "SLICE" if codec in ("hevc", "vp8") else "AUTO"
        if codec in ("mpeg1video", "mpeg2video"):
            context.thread_count = 1


def frames_by_index(
    file: Source, index: Index, numbers: NDArray[np.int32], thrifty: bool, careful: bool
) -> Iterator[VideoFrame]:
    """The frames of these ascending numbers; NotAsIndexedError if the index proves wrong.

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

    def __init__(self, index: Index, sieve: _Sieve, careful: bool) -> None:
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
            raise DamagedError("it is missing") if wanted in self._marked else NotAsIndexedError
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
            raise NotAsIndexedError
        for passed in range(self.position + 1, number):
            time = int(self._index.pts[passed])
            if self._lost and time in self._lost:
                self._marked.add(passed)
            elif time not in self._sieve.left_out:
                raise NotAsIndexedError
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
    file: Source, container: InputContainer, stream: VideoStream, index: Index, key: int
) -> tuple[Iterator[Packet[VideoStream]], int]:
    """Packets from a keyframe at or before number `key` on, and the number before their first."""
    try:
        container.seek(int(index.pts[key]), stream=stream)
    except failures() as exc:
        raise NotAsIndexedError from exc
    packets = file.packets(container, stream)
    first = next(packets, None)
    if first is None or first.pts is None or not first.is_keyframe:
        raise NotAsIndexedError
    landed = index.number_of(first.pts)
    if landed is None or landed > key:
        raise NotAsIndexedError
    # An open GOP's leading pictures refer to what was jumped over; none of them is needed.
    start = first.pts
    following = (packet for packet in packets if packet.pts is None or packet.pts >= start)
    return chain([first], following), landed - 1


def _all_frames(file: Source, careful: bool) -> Iterator[VideoFrame]:
    """Every frame that comes out of the decoder. Raises DamagedError where it fails."""
    with file.opened() as (container, stream):
        _decode_with(stream, file.budget.limits, careful=careful)
        yield from _decoded(file.packets(container, stream))


def frames_by_count(file: Source, numbers: Iterable[int], careful: bool) -> Iterator[VideoFrame]:
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
    broken = failures()
    for packet in packets:
        try:
            frames = packet.decode()
        except broken as exc:
            if lost is None or packet.pts is None:
                raise DamagedError(reason(exc)) from exc
            lost.add(packet.pts)
        else:
            yield from frames


def count_frames(file: Source, careful: bool) -> int:
    """Frames that come out of the decoder. Raises DamagedError where it fails."""
    total = sum(1 for _ in _all_frames(file, careful))
    if not total:
        raise VideoError(f"no frame of {file.path} can be decoded", hint=REPAIR_HINT)
    return total


def whole_frames(file: Source) -> int:
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
