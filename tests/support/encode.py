"""Video files made on the spot: frames in, a file in any codec and shape of trouble out.

libx264 gives other pixels for the same frames on other CPUs (SSE2's kernels decide otherwise than
AVX's), and with its macroblock tree, on some of them, from call to call, as memory happens to lie.
So `encode` never gives the same twice: what compares two encodings fails here on every machine. To
have the same pixels in two containers, encode once and `remux`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How `encode` writes a file.

    options: the codec's own ("g": "250", "x264-params": "open-gop=1", ...).
    container: the container's ("movflags": "faststart").
    ticks: presentation time of each frame in units of 1/rate, for a variable frame rate.
    rotation: degrees counterclockwise, written as the display matrix; pixels stay as they are.
    color: colour space, range, primaries and so on to tag the stream with.
    """

    codec: str = "libx264"
    rate: Fraction | int = 25
    pix_fmt: str = "yuv420p"
    options: Mapping[str, str] = field(default_factory=dict)
    container: Mapping[str, str] = field(default_factory=dict)
    ticks: Sequence[int] | None = None
    rotation: int = 0
    audio: bool = False
    color: Mapping[str, int] = field(default_factory=dict)


def moving_shapes(
    count: int, height: int = 72, width: int = 96, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """[count, height, width, 3] RGB, no two frames alike: two drifting squares over a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1)
    frames = np.empty((count, height, width, 3), np.uint8)
    colours = rng.integers(0, 256, (2, 3))
    for i in range(count):
        frames[i] = (base + 3 * i) % 256
        top, left = (5 * i) % max(1, height - 16), (7 * i) % max(1, width - 16)
        frames[i, top : top + 16, left : left + 16] = colours[0]
        frames[i, -top - 16 : height - top, left // 2 : left // 2 + 12] = colours[1]
    return frames


_QUALITIES = itertools.cycle({"crf": crf} for crf in ("23", "22.5", "22"))


def encode(path: Path, frames: npt.NDArray[np.uint8], encoding: Encoding | None = None) -> Path:
    """Writes RGB `frames` [F, H, W, 3] to `path`, whose suffix names the container.

    H.264 and HEVC come out otherwise at each call, see above.
    """
    how = encoding or Encoding()
    varied = next(_QUALITIES) if how.codec in ("libx264", "libx265") else {}
    with av.open(str(path), "w", options=dict(how.container)) as container:
        stream = container.add_stream(how.codec, rate=how.rate, options={**varied, **how.options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = how.pix_fmt
        for name, value in how.color.items():
            setattr(stream.codec_context, name, value)
        if how.rotation:
            stream.set_display_rotation(how.rotation)
        sound = container.add_stream("aac", rate=44100) if how.audio else None
        ticks = how.ticks if how.ticks is not None else range(len(frames))
        time_base = 1 / Fraction(how.rate)
        for tick, pixels in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            seconds = float((max(ticks) + 1) * time_base)
            _add_tone(container, sound, seconds)
    return path


def remux(
    source: Path,
    target: Path,
    change: Callable[[int, av.Packet], list[av.Packet]] = lambda number, packet: [packet],
) -> Path:
    """Copies the packets; `change` gives what is written for the nth packet."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        packets = (packet for packet in given.demux(given.streams.video[0]) if packet.size)
        for number, packet in enumerate(packets):
            for changed in change(number, packet):
                changed.stream = stream
                made.mux(changed)
    return target


def _add_tone(container: av.container.OutputContainer, stream: object, seconds: float) -> None:
    samples = int(seconds * 44100) // 1024 * 1024
    wave = np.sin(np.arange(samples) * 0.06).astype(np.float32)
    for start in range(0, samples, 1024):
        block = av.AudioFrame.from_ndarray(
            wave[None, start : start + 1024], format="fltp", layout="mono"
        )
        block.sample_rate, block.pts = 44100, start
        container.mux(stream.encode(block))
    container.mux(stream.encode(None))
