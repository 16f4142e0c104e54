"""The names of the classes: a file's, or those that the checkpoint holds."""

from __future__ import annotations

from pathlib import Path

from action_export.checkpoint import Checkpoint
from action_export.errors import LabelsError


def load_labels(path: Path | None, checkpoint: Checkpoint, classes: int) -> tuple[str, ...]:
    """One label a class: the file's lines, else the checkpoint's metadata, else none.

    Raises:
        LabelsError: the file cannot be read, or has another number of lines than classes.
    """
    if path is None:
        return checkpoint.classes if len(checkpoint.classes) == classes else ()
    try:
        # utf-8-sig: editors on Windows begin a file with a byte order mark
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise LabelsError(f"{path} cannot be read: {exc}", hint="one label a line, UTF-8") from exc
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) != classes:
        raise LabelsError(
            f"{path} has {len(labels)} labels, the model has {classes} classes",
            hint="write one label a line, in the order of the classes",
        )
    return labels
