#!/usr/bin/env python
"""Draws the clips of the example recognizer, and writes them as H.264 files.

In every clip one shape, the actor, does one of LABELS over a textured background that drifts.
One or two other shapes do nothing but drift along. The actor wobbles a little whatever it does,
so that no single frame, and no single difference of two frames, gives the label away.

    python scripts/example_clips.py OUT --seed 7 --count 200

The same seed gives the same clips. Nothing here needs more than numpy and cv2, except the
encoding, which is PyAV's libx264.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Video = NDArray[np.uint8]  # [T, H, W, 3], RGB

FPS = 30
FRAMES = (64, 80)  # the shortest and the longest clip of a dataset
SIZES = ((340, 256), (426, 240), (256, 340))  # width, height


# ---- what the actor does -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Where the actor is and how it looks, per frame, [T].

    Places are in short sides from the centre of the frame (y down), sizes in short sides,
    angles in radians (clockwise on the screen).
    """

    x: Floats
    y: Floats
    size: Floats
    angle: Floats
    opacity: Floats


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of each frame, counted in frames from the middle of the clip, [T]."""

    time: Floats

    def ramp(self, start: float, length: float) -> Floats:
        """0 before `start`, 1 after `start + length`, straight between."""
        return np.clip((self.time - start) / length, 0.0, 1.0)

    def action(self, rng: np.random.Generator) -> Floats:
        """The progress of an action that takes most of the clip."""
        length = rng.uniform(42, 54)
        return self.ramp(rng.uniform(-4, 4) - length / 2, length)

    def events(
        self, rng: np.random.Generator, lengths: Sequence[float], gap: float
    ) -> list[Floats]:
        """The progress of short actions one after the other, somewhere in the middle 46 frames."""
        total = sum(lengths) + gap * (len(lengths) - 1)
        slack = max(46 - total, 0.0)
        start = rng.uniform(-slack, slack) / 2 - total / 2
        ramps = []
        for length in lengths:
            ramps.append(self.ramp(start, length))
            start += length + gap
        return ramps


Action = Callable[[np.random.Generator, Clock, Track], Track]


def _travel(
    rng: np.random.Generator, track: Track, heading: float, progress: Floats, length: float
) -> Track:
    """Moves along `heading` (radians, clockwise from right) through the middle of the frame."""
    aside = rng.uniform(-0.2, 0.2)
    along = (progress - 0.5) * length
    return replace(
        track,
        x=track.x * 0.2 + along * np.cos(heading) - aside * np.sin(heading),
        y=track.y * 0.2 + along * np.sin(heading) + aside * np.cos(heading),
    )


def _moves(rng: np.random.Generator, clock: Clock, track: Track, *, degrees: float) -> Track:
    heading = np.deg2rad(degrees + rng.uniform(-20, 20))
    return _travel(rng, track, heading, clock.action(rng), rng.uniform(0.3, 0.6))


def _changes_speed(rng: np.random.Generator, clock: Clock, track: Track, *, faster: bool) -> Track:
    progress = clock.action(rng)
    power = rng.uniform(2.0, 3.2)
    eased = progress**power if faster else 1 - (1 - progress) ** power
    return _travel(rng, track, rng.uniform(0, 2 * np.pi), eased, rng.uniform(0.45, 0.65))


def _resizes(rng: np.random.Generator, clock: Clock, track: Track, *, grows: bool) -> Track:
    factor = rng.uniform(1.6, 2.4)
    progress = clock.action(rng)
    exponent = (progress if grows else 1 - progress) - 0.5
    return replace(track, size=track.size * factor**exponent)


def _turns(rng: np.random.Generator, clock: Clock, track: Track, *, sign: int) -> Track:
    angle = np.deg2rad(rng.uniform(110, 220)) * clock.action(rng)
    return replace(track, angle=track.angle + sign * angle)


def _circles(rng: np.random.Generator, clock: Clock, track: Track, *, sign: int) -> Track:
    radius = rng.uniform(0.1, 0.24)
    sweep = np.deg2rad(rng.uniform(230, 400)) * clock.action(rng)
    angle = rng.uniform(0, 2 * np.pi) + sign * sweep
    return replace(
        track,
        x=track.x * 0.5 + radius * np.cos(angle),
        y=track.y * 0.5 + radius * np.sin(angle),
    )


def _jumps(rng: np.random.Generator, clock: Clock, track: Track, *, times: int) -> Track:
    lengths = rng.uniform(13, 17, times)
    height = rng.uniform(0.16, 0.3)
    ramps = clock.events(rng, lengths, rng.uniform(6, 9))
    lift = sum((4 * ramp * (1 - ramp) for ramp in ramps), np.zeros_like(clock.time))
    return replace(track, y=track.y + height * (0.5 - lift))


def _blinks(rng: np.random.Generator, clock: Clock, track: Track, *, times: int) -> Track:
    lengths = rng.uniform(10, 14, times)
    ramps = clock.events(rng, lengths, rng.uniform(10, 14))
    hidden = sum((((ramp > 0) & (ramp < 1)) for ramp in ramps), np.zeros_like(clock.time))
    return replace(track, opacity=track.opacity * (1 - hidden))


def _fades(rng: np.random.Generator, clock: Clock, track: Track, *, appears: bool) -> Track:
    progress = clock.action(rng)
    faint = rng.uniform(0.0, 0.25)
    return replace(track, opacity=faint + (1 - faint) * (progress if appears else 1 - progress))


def _trembles(rng: np.random.Generator, clock: Clock, track: Track) -> Track:
    reach = rng.uniform(0.025, 0.05)
    steps = rng.uniform(-reach, reach, (2, len(clock.time)))
    return replace(track, x=track.x + steps[0], y=track.y + steps[1])


def _stays(rng: np.random.Generator, clock: Clock, track: Track) -> Track:
    return track


ACTIONS: dict[str, Action] = {
    "moves left": partial(_moves, degrees=180),
    "moves right": partial(_moves, degrees=0),
    "moves up": partial(_moves, degrees=270),
    "moves down": partial(_moves, degrees=90),
    "speeds up": partial(_changes_speed, faster=True),
    "slows down": partial(_changes_speed, faster=False),
    "grows": partial(_resizes, grows=True),
    "shrinks": partial(_resizes, grows=False),
    "turns clockwise": partial(_turns, sign=1),
    "turns counter-clockwise": partial(_turns, sign=-1),
    "circles clockwise": partial(_circles, sign=1),
    "circles counter-clockwise": partial(_circles, sign=-1),
    "jumps once": partial(_jumps, times=1),
    "jumps twice": partial(_jumps, times=2),
    "blinks once": partial(_blinks, times=1),
    "blinks twice": partial(_blinks, times=2),
    "fades in": partial(_fades, appears=True),
    "fades out": partial(_fades, appears=False),
    "trembles": _trembles,
    "stays still": _stays,
}
LABELS = tuple(ACTIONS)
TWINS = tuple(zip(LABELS[::2], LABELS[1::2], strict=True))


# ---- what is drawn -----------------------------------------------------------------------------

# Outlines in units of half the shape's size. None looks the same after less than half a turn
# except the triangle (a third), and an actor that turns does less than that between two samples.
OUTLINES: tuple[Floats, ...] = tuple(
    np.array(points, dtype=np.float64)
    for points in (
        [(0.0, -1.0), (0.87, 0.5), (-0.87, 0.5)],  # triangle
        [(-1.0, -0.35), (1.0, -0.35), (1.0, 0.35), (-1.0, 0.35)],  # bar
        [(-0.8, -0.9), (-0.1, -0.9), (-0.1, 0.2), (0.8, 0.2), (0.8, 0.9), (-0.8, 0.9)],  # L
        [(1, 0), (0.1, -0.8), (0.1, -0.3), (-1, -0.3), (-1, 0.3), (0.1, 0.3), (0.1, 0.8)],  # arrow
        [(np.cos(a), np.sin(a) - 0.4) for a in np.linspace(0, np.pi, 16)],  # half disc
        [(np.cos(a), 0.6 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 24)[:-1]],  # ellipse
    )
)

DARK, LIGHT = np.full(3, 60.0), np.full(3, 210.0)  # without clutter, light shapes on dark


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    outline: Floats  # [points, 2]
    color: Floats  # [3], 0 to 255
    track: Track


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that a clip shows, drawn already where it does not change from frame to frame."""

    size: tuple[int, int]  # width, height
    background: NDArray[np.uint8]  # with a margin for the drift
    drift: Floats  # [T, 2], short sides
    light: Floats  # [T], 1 is unchanged
    noise: NDArray[np.int16]  # [H + 64, W + 64, 3]
    noise_at: NDArray[np.int64]  # [T, 2], the corner of the part that falls on a frame
    shapes: tuple[Shape, ...]


def _background(
    rng: np.random.Generator, width: int, height: int, clutter: float
) -> NDArray[np.uint8]:
    """Clouds of a few sizes around one colour, half of the time with stripes or tiles."""
    base = rng.uniform(50, 205, 3) if rng.random() < clutter else DARK
    image = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    for cells, strength in ((3, 22), (7, 14), (20, 10)):
        grid = rng.normal(0, strength, (cells, cells, 3)) * 0.6 * clutter
        grid += rng.normal(0, strength, (cells, cells, 1)) * 0.6 * clutter
        image += cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    kind = rng.integers(4)
    if kind < 2:
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.08, 0.25) * min(width, height)
        y, x = np.mgrid[:height, :width].astype(np.float32) * np.float32(2 * np.pi / period)
        wave = np.sin(x * np.cos(angle) + y * np.sin(angle))
        if kind == 1:
            wave = wave * np.sin(y * np.cos(angle) - x * np.sin(angle))
        image += clutter * rng.uniform(8, 22) * np.sign(wave)[..., None].astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _color(rng: np.random.Generator, avoid: Sequence[Floats], clutter: float) -> Floats:
    """A colour at least 80 from each of `avoid` (Euclidean distance in RGB)."""
    if rng.random() >= clutter:
        return LIGHT
    while True:
        color = rng.uniform(0, 255, 3)
        if all(np.linalg.norm(color - other) >= 80 for other in avoid):
            return color


def _still(rng: np.random.Generator, frames: int, size: float, reach: float) -> Track:
    """A shape at one place, at most `reach` short sides from the centre."""
    x, y = rng.uniform(-reach, reach, 2)
    angle = rng.uniform(0, 2 * np.pi)
    return Track(
        **{
            name: np.full(frames, value)
            for name, value in {
                "x": x,
                "y": y,
                "size": size,
                "angle": angle,
                "opacity": 1.0,
            }.items()
        }
    )


def _wobble(rng: np.random.Generator, clock: Clock, track: Track, clutter: float) -> Track:
    """Small slow waves in everything, which say nothing about the label."""

    def wave(reach: float) -> Floats:
        period = rng.uniform(25, 90)
        phase = rng.uniform(0, 2 * np.pi)
        return clutter * rng.uniform(0, reach) * np.sin(2 * np.pi * clock.time / period + phase)

    return replace(
        track,
        x=track.x + wave(0.02),
        y=track.y + wave(0.02),
        size=track.size * (1 + wave(0.06)),
        angle=track.angle + wave(0.16),
        opacity=track.opacity * (1 - np.abs(wave(0.12))),
    )


def compose(
    label_index: int,
    rng: np.random.Generator,
    size: tuple[int, int],
    frames: int,
    clutter: float = 1.0,
) -> Scene:
    """Draws lots for a clip of `label_index`: the background, the shapes and what they do.

    `clutter` from 0 to 1 scales all that hides the action: training begins without it.
    """
    width, height = size
    side = min(size)
    clock = Clock(np.arange(frames) - (frames - 1) / 2)
    margin = int(0.25 * side)
    background = _background(rng, width + 2 * margin, height + 2 * margin, clutter)
    direction = rng.uniform(0, 2 * np.pi)
    drift = np.outer(clock.time, [np.cos(direction), np.sin(direction)]) * rng.uniform(0, 0.0022)
    drift *= clutter
    colors = [background.reshape(-1, 3).mean(axis=0)]

    def shape(track: Track) -> Shape:
        colors.append(_color(rng, colors, clutter))
        outline = OUTLINES[rng.integers(len(OUTLINES))]
        moved = replace(track, x=track.x + drift[:, 0], y=track.y + drift[:, 1])
        return Shape(outline=outline, color=colors[-1], track=moved)

    actor = _wobble(rng, clock, _still(rng, frames, rng.uniform(0.2, 0.36), 0.2), clutter)
    actor = ACTIONS[LABELS[label_index]](rng, clock, actor)
    idle = [_still(rng, frames, rng.uniform(0.12, 0.3), 0.42) for _ in range(rng.integers(1, 3))]
    idle = idle if rng.random() < clutter else []
    flicker = 0.03 * np.sin(clock.time / rng.uniform(4, 15)) * rng.uniform(0, 1)
    grain = rng.standard_normal((height + 64, width + 64, 1), np.float32) * rng.uniform(1, 6)
    return Scene(
        size=size,
        background=background,
        drift=drift,
        light=1 + flicker,
        noise=grain.astype(np.int16).repeat(3, axis=2),
        noise_at=rng.integers(0, 64, (frames, 2)),
        shapes=(*map(shape, idle), shape(actor)),
    )


def _paint(image: NDArray[np.uint8], shape: Shape, frame: int, side: int) -> None:
    track = shape.track
    opacity = float(np.clip(track.opacity[frame], 0, 1))
    if opacity == 0:
        return
    cos, sin = np.cos(track.angle[frame]), np.sin(track.angle[frame])
    points = shape.outline @ np.array([[cos, sin], [-sin, cos]]) * (track.size[frame] * side / 2)
    points += np.array(image.shape[1::-1]) / 2 + np.array([track.x[frame], track.y[frame]]) * side
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.maximum(np.ceil(points.max(axis=0)).astype(int) + 2, 0)
    part = image[top:bottom, left:right]
    if part.size == 0:
        return
    fixed = np.round((points - (left, top)) * 16).astype(np.int32)  # 4 bits of sub-pixel place
    mask = np.zeros(part.shape[:2], np.uint8)
    cv2.fillPoly(mask, [fixed], 255, lineType=cv2.LINE_AA, shift=4)
    weight = mask[..., None].astype(np.float32) * np.float32(opacity / 255)
    part += ((shape.color.astype(np.float32) - part) * weight).astype(np.int16).astype(np.uint8)


def draw_frame(scene: Scene, frame: int) -> NDArray[np.uint8]:
    width, height = scene.size
    side = min(scene.size)
    # whole pixels for the background: interpolating it would take half of the time of drawing
    corner = (np.array(scene.background.shape[1::-1]) - scene.size) / 2 - scene.drift[frame] * side
    left, top = np.round(corner).astype(int)
    image = scene.background[top : top + height, left : left + width].copy()
    for shape in scene.shapes:
        _paint(image, shape, frame, side)
    y, x = scene.noise_at[frame]
    lit = cv2.convertScaleAbs(image, alpha=scene.light[frame])
    return cv2.add(lit, scene.noise[y : y + height, x : x + width], dtype=cv2.CV_8U)


def draw_clip(
    label_index: int,
    rng: np.random.Generator,
    size: tuple[int, int],
    frames: int,
    only: Sequence[int] | None = None,
    clutter: float = 1.0,
) -> Video:
    """A clip of `LABELS[label_index]` as uint8 RGB, [frames, height, width, 3].

    `size` is (width, height). With `only`, just those frames of the same clip are drawn.
    """
    scene = compose(label_index, rng, size, frames, clutter)
    return np.stack(
        [draw_frame(scene, frame) for frame in (range(frames) if only is None else only)]
    )


# ---- files -------------------------------------------------------------------------------------


def encode(path: Path, video: Video, *, crf: int, preset: str = "veryfast") -> None:
    """Writes `video` as H.264 in an .mp4 file; `crf` 18 looks lossless, 40 is poor."""
    import av

    with av.open(str(path), "w") as container:
        # The same bytes every time on one kind of CPU: with more threads they depend on its cores,
        # and with mbtree they differ from run to run (libx264 165 with AVX-512).
        options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_dataset(folder: Path | str, seed: int, count: int) -> list[tuple[Path, int]]:
    """Encodes `count` clips, the labels in turn, and lists (path, label index).

    `annotations.txt` beside them is what mmaction2's VideoDataset reads.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        label_index = number % len(LABELS)
        size = SIZES[rng.integers(len(SIZES))]
        video = draw_clip(label_index, rng, size, int(rng.integers(FRAMES[0], FRAMES[1] + 1)))
        path = folder / f"{number:04d}_{LABELS[label_index].replace(' ', '_')}.mp4"
        encode(path, video, crf=int(rng.integers(20, 37)))
        entries.append((path, label_index))
    lines = [f"{path.name} {label_index}\n" for path, label_index in entries]
    (folder / "annotations.txt").write_text("".join(lines), encoding="utf-8")
    return entries


@dataclass(frozen=True, slots=True)
class Bundled:
    """A clip that is shipped with the example; sizes and lengths differ on purpose."""

    label: str
    seed: int
    size: tuple[int, int]
    frames: int


BUNDLED = (
    Bundled("circles clockwise", 1, (340, 256), 72),
    Bundled("grows", 2, (426, 240), 64),
    Bundled("moves left", 3, (256, 340), 80),
    Bundled("jumps twice", 4, (340, 256), 76),
    Bundled("turns counter-clockwise", 5, (320, 240), 100),
)


def write_bundled(folder: Path) -> list[Path]:
    """Draws the clips of BUNDLED as `LABEL.mp4`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for clip in BUNDLED:
        rng = np.random.default_rng([clip.seed])
        video = draw_clip(LABELS.index(clip.label), rng, clip.size, clip.frames)
        paths.append(folder / f"{clip.label.replace(' ', '_')}.mp4")
        encode(paths[-1], video, crf=24)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw clips and write them as H.264 files.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for the .mp4 files")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    entries = write_dataset(args.out, args.seed, args.count)
    print(f"wrote {len(entries)} clips and annotations.txt to {args.out}")


if __name__ == "__main__":
    main()
