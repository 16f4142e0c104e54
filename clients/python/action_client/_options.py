"""Options that both commands have: what a video file may cost, and how the server is reached."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Limits


def add_proxy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--proxy",
        action="store_true",
        help="go through the proxy that http_proxy names in the environment",
    )


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time above 0")
    return value


def whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return number


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Defaults stay those of `Limits`, which is not imported for --help."""
    group = parser.add_argument_group("limits of a video file; see Limits in the documentation")
    for name, unit, text in (
        ("file-bytes", "BYTES", "its size (16 GiB)"),
        ("pixels", "N", "of a picture (those of 8192x4320)"),
        ("frames", "N", "of the whole file (1000000)"),
        ("memory", "BYTES", "of the frames that are needed, resized (2 GiB)"),
    ):
        group.add_argument(f"--max-{name}", type=whole(1), metavar=unit, help=text)
    group.add_argument("--max-seconds", type=seconds, metavar="S", help="to decode it (300)")
    group.add_argument(
        "--formats",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,...",
        help="FFmpeg's names of the container formats that are opened, in place of the default",
    )
    group.add_argument(
        "--any-file", action="store_true", help="also read pipes and devices, such as /dev/stdin"
    )


def limits_of(options: argparse.Namespace) -> Limits:
    """Raises InvalidRequestError for formats that are none."""
    from . import InvalidRequestError, Limits

    asked = {
        "file_bytes": options.max_file_bytes,
        "pixels": options.max_pixels,
        "frames": options.max_frames,
        "memory": options.max_memory,
        "seconds": options.max_seconds,
        "formats": options.formats,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        return Limits(**given, regular_files=not options.any_file)
    except ValueError as exc:
        raise InvalidRequestError(str(exc), hint="see --help for the limits") from exc
