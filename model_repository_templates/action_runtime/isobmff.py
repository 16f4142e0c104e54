"""What the header of an MP4 declares, read without FFmpeg.

FFmpeg makes an entry of every sample of every track while it opens a file, 40 bytes each, and the
counts need no data behind them: 8 kB that declare 80 million samples took it 16 s and 2.8 GB
(7.1). So the counts are added up first. Boxes: ISO/IEC 14496-12.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from .limits import Budget, VideoLimitError

# FFmpeg looks into these wherever they stand.
_PARENTS = frozenset(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"udta")
)
_DEEPEST = 8
_MOST_READ = 2**20
# Video, sound, subtitles and time codes have no more samples than so many times the frames.
_SAMPLES_A_FRAME = 8


@dataclass(slots=True)
class _Track:
    """Numbers of its header. one_each: every sample lasts one tick, as those of PCM sound do."""

    is_sound: bool = False
    one_each: bool = False
    samples: int = 0
    chunks: int = 0
    longest_chunk: int = 0
    edits: int = 1

    def entries(self) -> int:
        """Entries of FFmpeg's index: of PCM one per 1024 samples, and for each edit again."""
        pcm = self.is_sound and self.one_each
        entries = self.chunks * (self.longest_chunk // 1024 + 1) if pcm else self.samples
        return entries * max(1, self.edits)


def check(file: IO[bytes], budget: Budget) -> None:
    """Raises VideoLimitError if the boxes declare more samples than the limit of frames allows."""
    total, track = 0, _Track()
    allowed = budget.limits.frames * _SAMPLES_A_FRAME
    end = file.seek(0, os.SEEK_END)
    for kind, start, stop in budget.timed(_boxes(file, 0, end, 0)):
        file.seek(start)
        match kind:
            case b"trak":
                total, track = total + track.entries(), _Track()
            case b"cmov":
                raise VideoLimitError(
                    f"{budget.path} has a compressed header, which is not opened",
                    limit="formats",
                    hint="write it anew: ffmpeg -i IN -c copy OUT.mp4",
                )
            case b"trun":
                total += _number(file.read(8)[4:])
            case b"hdlr" | b"stsz" | b"stz2" | b"stts" | b"stco" | b"co64" | b"stsc" | b"elst":
                _note(kind, file.read(min(stop - start, _MOST_READ)), track)
        if total + track.entries() > allowed:
            budget.check_frames(max(total + track.entries(), budget.limits.frames + 1))


def _note(kind: bytes, content: bytes, track: _Track) -> None:
    """content: of the box, from its version and flags on, or the first MiB of that."""
    match kind:
        case b"hdlr":
            # QuickTime has a second one, for how the data is referred to.
            track.is_sound |= content[8:12] == b"soun"
        case b"stsz" | b"stz2":
            track.samples = max(track.samples, _number(content[8:12]))
        case b"stts":
            track.one_each = _number(content[4:8]) == 1 == _number(content[12:16])
        case b"stco" | b"co64":
            track.chunks = max(track.chunks, _number(content[4:8]))
        case b"stsc":
            table = np.frombuffer(content[8 : 8 + (len(content) - 8) // 12 * 12], ">u4")
            track.longest_chunk = max([track.longest_chunk, *table[1::3].tolist()])
        case b"elst":
            track.edits = max(track.edits, _number(content[4:8]))


def _boxes(file: IO[bytes], start: int, end: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content and end of each box, those within parents after their parent."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        size, kind, content = _number(head[:4]), head[4:8], start + 8
        if size == 1:
            size, content = _number(head[8:16]), start + 16
        stop = end if size == 0 else min(end, start + size)
        if stop < content:
            return
        yield kind, content, stop
        if kind in _PARENTS and depth < _DEEPEST:
            yield from _boxes(file, content, stop, depth + 1)
        start = stop


def _number(big_endian: bytes) -> int:
    return int.from_bytes(big_endian, "big")
