"""Damaged files are damaged, differ, and are the same for the same seed."""

from __future__ import annotations

from pathlib import Path

from action_export import example

from soak.damage import SPOILERS, damaged

VIDEOS = example.CLIPS


def contents(folder: Path, *, seed: int) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in damaged(VIDEOS, folder, count=60, seed=seed)]


def test_each_file_is_damaged_and_the_seed_repeats_it(tmp_path: Path) -> None:
    whole = {video.read_bytes() for video in VIDEOS}
    found = contents(tmp_path, seed=1)
    assert not any(content in whole for _, content in found)
    assert len({content for _, content in found}) > 55
    assert all(any(spoil.__name__ in name for name, _ in found) for spoil in SPOILERS)
    assert contents(tmp_path, seed=1) == found
    assert contents(tmp_path, seed=2) != found
    assert list(tmp_path.iterdir()) == []
