"""Opening a video file that a stranger may have written: what it is, and FFmpeg on it."""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING

from . import isobmff
from .limits import Budget, Limits, VideoError, VideoLimitError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_BLOCK = 2**20

REPAIR_HINT = "fetch the file again, or keep what is there: ffmpeg -i IN -c:v libx264 OUT.mp4"


class DamagedError(Exception):
    """What is read of a file is not whole. The text is FFmpeg's reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A regular file that is read within a budget. name: under which FFmpeg finds it."""

    name: str
    budget: Budget

    @property
    def path(self) -> Path:
        """As the caller named it."""
        return self.budget.path

    @contextmanager
    def opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The file in FFmpeg, and its video stream.

        Raises:
            VideoError: FFmpeg cannot read it, or there is no video stream.
            VideoLimitError: its format, its pictures or its frames are beyond the limits.
        """
        try:
            container = self._open()
        except failures() as exc:
            self.budget.seconds_left()
            if getattr(exc, "errno", None) == errno.EINVAL:
                # What FFmpeg says of a format outside of the whitelist.
                raise self._format_error() from exc
            raise VideoError(
                f"{self.path} is not a video that FFmpeg can read, or is cut short ({reason(exc)})",
                hint="try `ffprobe` on it; an MP4 without its end has lost its index",
            ) from exc
        with container:
            # FFmpeg 4 and before had no whitelist for what is within other formats.
            if not set(container.format.name.split(",")) & set(self.budget.limits.formats):
                raise self._format_error(container.format.name)
            yield container, self._stream(container)

    def packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[Packet[VideoStream]]:
        """The packets from where the container stands, while there is time.

        Raises:
            DamagedError: FFmpeg cannot read on.
            VideoLimitError: the time is over.
        """
        broken = failures()  # at once: an interpreter that ends imports nothing more
        try:
            yield from self.budget.timed(container.demux(stream))
        except broken as exc:
            self.budget.seconds_left()
            raise DamagedError(reason(exc)) from exc

    def _open(self) -> InputContainer:
        import av

        limits = self.budget.limits
        # FFmpeg decodes a picture to learn what the stream is. PyAV 14 to 16 crash on MPEG program
        # streams with `options`; there the size is known only after that picture.
        bounded = int(av.__version__.split(".")[0]) >= 17
        return av.open(
            self.name,
            options={"max_pixels": str(limits.coded_pixels)} if bounded else None,
            # A playlist must not make a service fetch or open what its author points at.
            container_options={
                "protocol_whitelist": "file",
                "format_whitelist": ",".join(limits.formats),
            },
            metadata_errors="replace",
            timeout=self.budget.seconds_left(),
        )

    def _format_error(self, found: str = "") -> VideoLimitError:
        named = f" ({found})" if found else ""
        return VideoLimitError(
            f"{self.path} is in none of the container formats that are opened{named}: "
            f"{', '.join(self.budget.limits.formats)}",
            limit="formats",
            hint="convert it: ffmpeg -i IN -c:v libx264 OUT.mp4",
        )

    def _stream(self, container: InputContainer) -> VideoStream:
        from av.stream import Disposition
        from av.video.stream import VideoStream

        try:
            stream = container.streams.best("video")
        except failures() as exc:
            raise VideoError(
                f"{self.path} has streams that FFmpeg cannot tell ({reason(exc)})",
                hint="write it anew: ffmpeg -i IN -c copy OUT.mp4",
            ) from exc
        # A cover picture in a music file counts as video for FFmpeg.
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise VideoError(
                f"{self.path} has no video stream", hint="choose a file with a picture"
            )
        if stream.codec_context is None:
            raise VideoError(
                f"{self.path} is in a codec that this build of FFmpeg cannot decode",
                hint="convert it: ffmpeg -i IN -c:v libx264 OUT.mp4",
            )
        self.budget.check_frames(stream.frames)
        self.budget.check_pixels(stream.codec_context.width, stream.codec_context.height)
        return stream


def failures() -> tuple[type[Exception], ...]:
    """What PyAV raises of a file: FFmpeg's errors, and its own on names and streams it mistakes."""
    import av

    return (av.error.FFmpegError, IndexError, UnicodeError)


def reason(exc: Exception) -> str:
    return str(getattr(exc, "strerror", None) or exc)


@contextmanager
def source(path: Path, limits: Limits) -> Iterator[Source]:
    """The file to read: the one of this path, or a copy of what a pipe or device gives.

    Raises:
        VideoError: there is none, or it is empty.
        VideoLimitError: it is no regular file, too large, or declares too many samples.
    """
    budget = Budget(path, limits)
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise VideoError(f"{path} is a directory", hint="name the video file itself")
    if not stat.S_ISREG(mode) and limits.regular_files:
        raise VideoLimitError(
            f"{path} is a {_kind(mode)}, and no regular file",
            limit="regular_files",
            hint="to read what it gives: Limits(regular_files=False), --any-file",
        )
    with NamedTemporaryFile() if not stat.S_ISREG(mode) else _file(path) as file:
        if not stat.S_ISREG(mode):
            with _readable(path):
                _copy(path, file, budget)
        _check(file, budget)
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        yield Source(name=os.path.abspath(file.name), budget=budget)


def _mode(path: Path) -> int:
    with _readable(path):
        return os.stat(path).st_mode


def _file(path: Path) -> IO[bytes]:
    with _readable(path):
        return path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises VideoError for the reasons of the system."""
    try:
        yield
    except VideoError:
        raise
    except FileNotFoundError as exc:
        raise VideoError(f"{path} does not exist", hint="check the path") from exc
    except OSError as exc:
        raise VideoError(f"{path} cannot be read: {exc.strerror}", hint="check the path") from exc
    except ValueError as exc:  # a NUL
        raise VideoError(f"{str(path)!r} is no path: {exc}", hint="check the path") from exc


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _copy(path: Path, target: IO[bytes], budget: Budget) -> None:
    # Without O_NONBLOCK opening a pipe waits until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        size, waiting = 0, select.poll()
        waiting.register(descriptor, select.POLLIN)
        while True:
            if not waiting.poll(1000 * min(1.0, budget.seconds_left())):
                continue
            block = os.read(descriptor, _BLOCK)
            if not block:
                break
            size += len(block)
            budget.check_bytes(size)
            target.write(block)
    finally:
        os.close(descriptor)
    target.flush()


def _check(file: IO[bytes], budget: Budget) -> None:
    with _readable(budget.path):
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise VideoError(f"{budget.path} is empty", hint="fetch the file again")
        budget.check_bytes(size)
        isobmff.check(file, budget)
