"""Which names the classes get, and what is refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from action_export.checkpoint import Checkpoint
from action_export.errors import (
    LabelsError,
)
from action_export.labels import load_labels
from support.refusal import refusal


def checkpoint_with(classes: tuple[str, ...]) -> Checkpoint:
    return Checkpoint(path=Path("w.pth"), sha256="", state_dict={}, classes=classes)


def test_labels_are_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(' pull up\nfête 🎉\r\n\nsay "hi"\n\n', encoding="utf-8")
    labels = load_labels(path, checkpoint_with(("x", "y", "z")), 3)
    assert labels == ("pull up", "fête 🎉", 'say "hi"')


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\n", encoding="utf-8-sig")
    assert load_labels(path, checkpoint_with(()), 2) == ("a", "b")


@pytest.mark.parametrize("count", [0, 2, 4])
def test_labels_of_the_wrong_count_are_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a\n" * count)
    error = refusal(LabelsError, lambda: load_labels(path, checkpoint_with(()), 3))
    assert f"{count} labels, the model has 3 classes" in error.message


def test_labels_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("fête\n".encode("latin-1"))
    for path in (latin, tmp_path / "nowhere.txt", tmp_path):
        error = refusal(LabelsError, lambda path=path: load_labels(path, checkpoint_with(()), 1))
        assert str(path) in error.message


def test_without_a_file_the_labels_are_the_checkpoints(tmp_path: Path) -> None:
    assert load_labels(None, checkpoint_with(("a", "b")), 2) == ("a", "b")


def test_without_a_file_labels_of_another_count_are_left_out() -> None:
    assert load_labels(None, checkpoint_with(("a", "b")), 3) == ()
    assert load_labels(None, checkpoint_with(()), 3) == ()
