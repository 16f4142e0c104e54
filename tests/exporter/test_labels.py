"""Which names the classes get, and what is refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from action_export.checkpoint import Checkpoint
from action_export.errors import ContractChangedError, LabelsError
from action_export.labels import Labels, load_labels
from support.refusal import refusal

NAMES = ("wave", "clap", "jump")


def checkpoint_with(classes: tuple[str, ...] = ()) -> Checkpoint:
    return Checkpoint(path=Path("w.pth"), sha256="", state_dict={}, classes=classes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.txt"


def of_bytes(path: Path, content: bytes, classes: int) -> Labels:
    path.write_bytes(content)
    return load_labels(path, checkpoint_with(), classes)


# --- The file -----------------------------------------------------------------------------------


def test_labels_are_the_lines_of_the_file(path: Path) -> None:
    content = ' pull up\nfête 🎉\r\n\nsay "hi"\n\n'.encode()
    assert of_bytes(path, content, 3) == Labels(names=("pull up", "fête 🎉", 'say "hi"'))


def test_a_byte_order_mark_is_no_part_of_a_label(path: Path) -> None:
    assert of_bytes(path, "a\nb\n".encode("utf-8-sig"), 2).names == ("a", "b")


@pytest.mark.parametrize(
    "character", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\x1d", "\x1e", "\x1f", "\r"]
)
def test_only_line_feeds_split_labels(path: Path, character: str) -> None:
    name = f"a{character}b"
    labels = of_bytes(path, f"{name}\nc\r\n".encode(), 2)
    assert labels.names == (name, "c")
    assert labels.notes == (f"the label of class 0 holds control characters: {name!r}",)


def test_escapes_of_terminals_are_kept_and_noted(path: Path) -> None:
    labels = of_bytes(path, b"a\n\x1b[31mred\n", 2)
    assert labels.names == ("a", "\x1b[31mred")
    assert labels.notes == (r"the label of class 1 holds control characters: '\x1b[31mred'",)


@pytest.mark.parametrize("names", [("a b", "fête 🎉"), ("日本語", "👩\u200d🚀"), ("a\xa0b", "c")])
def test_letters_of_any_script_need_no_note(path: Path, names: tuple[str, ...]) -> None:
    assert of_bytes(path, "\n".join(names).encode(), 2) == Labels(names=names)


def test_labels_that_are_alike_are_noted(path: Path) -> None:
    labels = of_bytes(path, b"a\nb\nc\nb\n", 4)
    assert labels.names == ("a", "b", "c", "b")
    assert labels.notes == ("classes 1 and 3 have the same label, 'b'",)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_labels_of_the_wrong_count_are_refused(path: Path, count: int) -> None:
    error = refusal(LabelsError, lambda: of_bytes(path, b"a\n" * count, 3))
    assert f"{count} labels, the model has 3 classes" in error.message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a\nb\n".encode("utf-16"), "it is UTF-16"),
        ("a\nb\n".encode("utf-16-le"), "a line break or a NUL"),
        ("fête\nb\n".encode("latin-1"), "it is no UTF-8"),
    ],
)
def test_other_encodings_are_refused(path: Path, content: bytes, told: str) -> None:
    path.write_bytes(content)
    lines = content.count(b"\n") + (b"\0" in content)
    error = refusal(LabelsError, lambda: load_labels(path, checkpoint_with(), lines))
    assert told in error.message
    assert str(path) in error.message
    assert "UTF-8" in error.hint


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.txt", tmp_path):
        error = refusal(LabelsError, lambda path=path: load_labels(path, checkpoint_with(), 1))
        assert str(path) in error.message


# --- The checkpoint -----------------------------------------------------------------------------


def test_without_a_file_the_labels_are_the_checkpoints() -> None:
    assert load_labels(None, checkpoint_with(NAMES), 3) == Labels(names=NAMES)
    assert load_labels(None, checkpoint_with(), 3) == Labels(names=())


def test_a_checkpoint_of_another_count_gives_no_labels_and_says_so() -> None:
    labels = load_labels(None, checkpoint_with(NAMES), 4)
    assert labels.names == ()
    assert "names 3 classes, the model has 4" in labels.notes[0]


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\ud800b"])
def test_names_that_labels_txt_cannot_hold_are_refused(name: str) -> None:
    error = refusal(LabelsError, lambda: load_labels(None, checkpoint_with(("a", name)), 2))
    assert f"calls class 1 {name!r}" in error.message
    assert "--labels FILE" in error.hint


def test_a_file_that_agrees_with_the_checkpoint_needs_no_note(path: Path) -> None:
    path.write_text("\n".join(NAMES))
    assert load_labels(path, checkpoint_with(NAMES), 3) == Labels(names=NAMES)


def test_a_file_is_taken_where_the_checkpoint_has_another_count(path: Path) -> None:
    path.write_text("\n".join(NAMES))
    assert load_labels(path, checkpoint_with(("a",)), 3) == Labels(names=NAMES)


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        (NAMES[::-1], "class 0 is 'jump', not 'wave' (the same names in another order)"),
        (("wave", "Clap", "jump"), "class 1 is 'Clap', not 'clap' (1 of 3 differ)"),
        (("wave", "b", "c"), "class 1 is 'b', not 'clap' (2 of 3 differ)"),
    ],
)
def test_a_file_that_differs_from_the_checkpoint_is_refused_unless_insisted(
    path: Path, given: tuple[str, ...], differs: str
) -> None:
    path.write_text("\n".join(given))
    error = refusal(LabelsError, lambda: load_labels(path, checkpoint_with(NAMES), 3))
    assert error.message.endswith(differs)
    assert "--relabel" in error.hint
    labels = load_labels(path, checkpoint_with(NAMES), 3, relabel=True)
    assert labels.names == given
    assert labels.notes[0].endswith(differs)


# --- The published model ------------------------------------------------------------------------


def test_labels_as_published_need_no_note() -> None:
    assert load_labels(None, checkpoint_with(NAMES), 3, published=NAMES) == Labels(names=NAMES)
    assert load_labels(None, checkpoint_with(), 3, published=()) == Labels(names=())


@pytest.mark.parametrize("known", [NAMES[::-1], ()])
def test_a_file_corrects_the_published_labels_with_a_note(
    path: Path, known: tuple[str, ...]
) -> None:
    path.write_text("\n".join(NAMES[::-1]))
    labels = load_labels(path, checkpoint_with(known), 3, published=NAMES)
    assert labels.names == NAMES[::-1]
    assert "change with this version, for all its versions: class 0 is 'jump'" in labels.notes[0]


def test_a_checkpoint_of_another_order_than_the_published_labels_is_refused() -> None:
    checkpoint = checkpoint_with(NAMES[::-1])
    error = refusal(ContractChangedError, lambda: load_labels(None, checkpoint, 3, published=NAMES))
    assert "class 0 is 'jump', not 'wave' (the same names in another order)" in error.message
    assert "--name" in error.hint
    assert "--relabel" in error.hint
    labels = load_labels(None, checkpoint, 3, published=NAMES, relabel=True)
    assert labels.names == NAMES[::-1]
    assert "change with this version" in labels.notes[0]


def test_the_published_labels_given_for_a_checkpoint_of_another_order_are_refused(
    path: Path,
) -> None:
    path.write_text("\n".join(NAMES))
    checkpoint = checkpoint_with(NAMES[::-1])
    refusal(LabelsError, lambda: load_labels(path, checkpoint, 3, published=NAMES))


def test_labels_may_be_added_and_not_taken_away() -> None:
    labels = load_labels(None, checkpoint_with(NAMES), 3, published=())
    assert labels.names == NAMES
    assert "gets labels with this version" in labels.notes[0]
    error = refusal(
        ContractChangedError, lambda: load_labels(None, checkpoint_with(), 3, published=NAMES)
    )
    assert "would have none" in error.message
    assert "labels.txt" in error.hint


def test_another_number_of_classes_is_left_to_the_contract() -> None:
    assert load_labels(None, checkpoint_with(NAMES), 3, published=("a", "b")).names == NAMES
