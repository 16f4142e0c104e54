"""Video files that are damaged in a way that a seed repeats."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def damaged(videos: Sequence[Path], folder: Path, *, count: int, seed: int) -> Iterator[Path]:
    """Writes `count` damaged copies into `folder`, one at a time; each replaces the last."""
    rng = random.Random(seed)
    for number in range(count):
        source = rng.choice(videos)
        spoil = rng.choice(SPOILERS)
        path = folder / f"{number}_{spoil.__name__}_{source.name}"
        path.write_bytes(spoil(bytearray(source.read_bytes()), rng))
        yield path
        path.unlink()


def flipped(content: bytearray, rng: random.Random) -> bytes:
    """One byte, or a few, anywhere."""
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def flipped_header(content: bytearray, rng: random.Random) -> bytes:
    """A few bytes of what says where everything else is."""
    at = content.find(b"moov")
    start, end = (at, len(content)) if at >= 0 else (0, min(len(content), 2000))
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(start, end)] = rng.randrange(256)
    return bytes(content)


def cut(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def zeroed(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randint(1, 4096))
    content[start:end] = bytes(end - start)
    return bytes(content)


def missing(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    del content[start : start + rng.randint(1, 4096)]
    return bytes(content)


def inserted(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    content[start:start] = rng.randbytes(rng.randint(1, 4096))
    return bytes(content)


def noise(content: bytearray, rng: random.Random) -> bytes:
    """Of the file only its first bytes, which tell its format."""
    return bytes(content[:64]) + rng.randbytes(len(content))


SPOILERS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    flipped,
    flipped_header,
    cut,
    zeroed,
    missing,
    inserted,
    noise,
)
