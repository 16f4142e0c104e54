"""The bundled example recognizer: its config, weights, labels and a few clips.

`scripts/train_example.py` makes all but the config. The paths are for reading only.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

CONFIG = _HERE / "config.py"
CHECKPOINT = _HERE / "checkpoint.pth"
LABELS = _HERE / "labels.txt"
CLIPS = tuple(sorted((_HERE / "clips").glob("*.mp4")))
