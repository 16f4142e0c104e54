"""Damaged files: an error where the decoder sees it in what is needed, and the same every time.

What a flipped bit makes of a picture may be another valid picture, which no decoder can tell. So
what is promised is: nothing that FFmpeg reports of a needed frame, or of what it may refer to, is
answered as if whole; and the same file gives the same frames or the same error. Pictures that a
container lost without a trace (Matroska, AVI and MPEG-TS count none) are no part of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from action_runtime import video
from action_runtime.limits import VideoError
from action_runtime.sampling import Plan
from support.encode import Encoding, encode, moving_shapes

FILES = {
    "h264.mp4": Encoding(options={"g": "12", "bf": "3"}),
    "h264.ts": Encoding(options={"g": "12", "bf": "3"}),
    "hevc.mp4": Encoding(codec="libx265", options={"x265-params": "keyint=12:log-level=none"}),
    "mpeg4.avi": Encoding(codec="mpeg4", options={"bf": "2", "g": "12"}),
    "mpeg2.mpg": Encoding(codec="mpeg2video", options={"bf": "2", "g": "12"}),
    "vp9.webm": Encoding(codec="libvpx-vp9", options={"g": "12"}),
    "motion.avi": Encoding(codec="mjpeg", pix_fmt="yuvj420p"),
}
FRAMES = 40
NEEDED = (3, 17, 29)
SEEDS = range(6)
RUNS = 3


def read(path: Path, numbers: Sequence[int]) -> np.ndarray | str:
    """The frames, or the error's text."""

    def choose(info: video.VideoInfo) -> Plan:
        wanted = np.array([n for n in numbers if n < info.total_frames], np.int32)
        return Plan(frame_numbers=wanted, frame_index=np.arange(len(wanted), dtype=np.int32))

    try:
        return video.read_frames(path, choose)[1]
    except VideoError as exc:
        return exc.message


def damaged(content: bytes, seed: int) -> bytes:
    """Some bytes of the middle lost, flipped or overwritten."""
    chosen, made = random.Random(seed), bytearray(content)
    length = chosen.choice([1, 1, 4, 64])
    at = chosen.randrange(len(made) // 8, len(made) * 7 // 8)
    for place in range(at, at + length):
        flipped = made[place] ^ 1 << chosen.randrange(8)
        made[place] = chosen.choice([0, flipped, chosen.randrange(256)])
    return bytes(made)


def reported(path: Path) -> list[bool]:
    """For each frame, in the order shown: whether FFmpeg reports anything of it, or of what comes
    before it in the file from the last keyframe on. With one thread, which alone tells whose it is.
    """
    packets: list[tuple[int, bool]] = []
    reports: set[int] = set()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            if packet.pts is not None:
                packets.append((packet.pts, packet.is_keyframe))
            try:
                reports |= {frame.pts for frame in packet.decode() if frame.is_corrupt}
            except av.error.FFmpegError:
                reports.add(packet.pts)
    shown, seen, key = {}, False, 0
    for time, is_key in packets:
        key = time if is_key else key
        # Nothing refers to pictures that follow a keyframe and are shown before it, but such.
        seen = (time in reports and time >= key) or (seen and not is_key)
        shown[time] = seen or time in reports
    return [shown[time] for time in sorted(shown)]


@dataclass(frozen=True)
class Whole:
    content: bytes
    frames: np.ndarray


@pytest.fixture(scope="module", params=FILES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path = tmp_path_factory.mktemp("damage") / request.param
    encode(path, moving_shapes(FRAMES, 144, 192), FILES[request.param])
    frames = read(path, NEEDED)
    assert isinstance(frames, np.ndarray)
    return Whole(path.read_bytes(), frames)


@pytest.mark.parametrize("seed", SEEDS)
def test_damage_is_answered_the_same_each_time_and_never_against_the_decoder(
    whole: Whole, seed: int, tmp_path: Path
) -> None:
    check(whole, seed, tmp_path)


@pytest.mark.parametrize("whole", ["mpeg2.mpg"], indirect=True)
def test_damage_that_threads_say_nothing_of(whole: Whole, tmp_path: Path) -> None:
    """One seed of 400: two threads decode each a part of a picture, and the errors are lost."""
    check(whole, 289, tmp_path)


def check(whole: Whole, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(damaged(whole.content, seed))
    found = read(path, NEEDED)
    for _ in range(RUNS - 1):
        assert np.array_equal(read(path, NEEDED), found)
    if isinstance(found, str):
        return
    seen = reported(path)
    for row, number in enumerate(NEEDED[: len(found)]):
        if len(seen) == FRAMES and seen[number]:
            assert np.array_equal(found[row], whole.frames[row])
