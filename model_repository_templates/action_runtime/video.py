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

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from .decoding import (
    NotAsIndexedError,
    count_frames,
    frames_by_count,
    frames_by_index,
    whole_frames,
)
from .frame_index import Index, scan
from .frame_index import VideoInfo as VideoInfo
from .limits import DEFAULT, Budget, Limits
from .limits import VideoError as VideoError
from .sampling import Plan
from .transforms import Frames
from .upright import RgbConverter
from .video_file import REPAIR_HINT, DamagedError, Source, failures, reason, source

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

T = TypeVar("T")
Convert = Callable[[Frames], Frames]
ToRgb = Callable[["VideoFrame"], Frames]

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
    info, index = scan(file)

    def collect(found: Iterator[VideoFrame], plan: Plan) -> Frames:
        pictures = _rgb(found, to_rgb or RgbConverter(), file.budget)
        return collect_frames(pictures, len(plan.frame_numbers), convert, file.budget)

    try:
        return _read(file, info, index, choose, collect)
    except DamagedError as exc:
        raise VideoError(
            f"{file.path} is damaged: {whole_frames(file)} of its {info.total_frames} frames can "
            f"be decoded, and later ones are needed ({exc})",
            hint=REPAIR_HINT,
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
    _, index = scan(file)
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
    index: Index | None,
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
                        frames_by_index(file, index, plan.frame_numbers, thrifty, careful), plan
                    )
                )
            except NotAsIndexedError:
                continue
    total = _with_care(lambda careful: count_frames(file, careful))
    if index is not None and index.seekable and total < info.total_frames:
        raise DamagedError(f"{info.total_frames - total} pictures are missing")
    plan = choose(replace(info, total_frames=total))
    return plan, _with_care(
        lambda careful: collect(frames_by_count(file, plan.frame_numbers, careful), plan)
    )


def _with_care(read: Callable[[bool], T]) -> T:
    """What `read` gives, at once or, where there is damage, by careful decoding; see `decoding`."""
    try:
        return read(False)
    except DamagedError:
        return read(True)


def _rgb(
    frames: Iterator[VideoFrame], to_rgb: ToRgb, budget: Budget
) -> Iterator[tuple[int, Frames]]:
    broken = failures()
    for row, frame in enumerate(frames):
        budget.check_pixels(frame.width, frame.height)
        try:
            picture = to_rgb(frame)
        except broken as exc:
            raise DamagedError(reason(exc)) from exc
        yield row, picture


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
