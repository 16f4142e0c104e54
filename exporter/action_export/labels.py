"""The names of the classes: a file's, or those that the checkpoint holds.

No proof can tell that names stand beside the wrong scores, so they are held to each other instead:
the file's to the checkpoint's, and both to those that are published. docs/checkpoints.md tells the
rules.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from action_export.checkpoint import Checkpoint
from action_export.errors import ContractChangedError, LabelsError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_OBEYED = ("Cc", "Zl", "Zp")
"""Unicode's controls and separators: a terminal may obey them, and some programs end a line."""
_NO_TEXT = "save it as UTF-8, one label a line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """names: one a class, or empty. notes: what the user should know of them."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_labels(
    path: Path | None,
    checkpoint: Checkpoint,
    classes: int,
    *,
    relabel: bool = False,
    published: tuple[str, ...] | None = None,
) -> Labels:
    """One label a class: the file's lines, else the checkpoint's metadata, else none.

    relabel: take the file's where the checkpoint names its classes otherwise, and either where the
        published ones differ.
    published: the labels of the model of that name which is in the repository; None if none is.

    Raises:
        LabelsError: the file cannot be read, has another number of lines than classes, or names
            the classes otherwise than the checkpoint.
        ContractChangedError: the checkpoint names the classes otherwise than the published model.
    """
    known = checkpoint.classes if len(checkpoint.classes) == classes else ()
    names = known if path is None else _of_file(path, classes)
    origin = "the checkpoint's metadata" if path is None else str(path)
    _check_characters(names, origin)
    notes = list(_notes(names))
    if checkpoint.classes and not names:
        notes.append(
            f"the checkpoint's metadata names {len(checkpoint.classes)} classes, the model has "
            f"{classes}: no labels are served; --labels FILE gives some"
        )
    if known and (differs := difference(names, known)):
        if not relabel:
            raise LabelsError(
                f"{path} names the classes otherwise than the checkpoint's metadata: {differs}",
                hint="leave --labels out for the checkpoint's names; --relabel insists on the "
                "file's",
            )
        notes.append(
            f"{path} names the classes otherwise than the checkpoint's metadata: {differs}"
        )
    notes += _beside_published(names, published, insisted=relabel or path is not None)
    return Labels(names=names, notes=tuple(notes))


def difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """The first class that two lists of one length name otherwise, and what is behind it; or ""."""
    pairs = list(zip(ours, theirs, strict=True))
    differ = [number for number, (mine, other) in enumerate(pairs) if mine != other]
    if not differ:
        return ""
    mine, other = pairs[differ[0]]
    same = sorted(ours) == sorted(theirs)
    behind = "the same names in another order" if same else f"{len(differ)} of {len(pairs)} differ"
    return f"class {differ[0]} is {mine!r}, not {other!r} ({behind})"


def _of_file(path: Path, classes: int) -> tuple[str, ...]:
    try:
        content = path.read_bytes()
        # utf-8-sig: editors on Windows begin a file with a byte order mark
        text = content.decode("utf-8-sig")
    except OSError as exc:
        raise LabelsError(f"{path} cannot be read: {exc.strerror}", hint=_NO_TEXT) from exc
    except UnicodeDecodeError as exc:
        what = "UTF-16" if content.startswith(_UTF_16) else f"no UTF-8: {exc.reason}"
        raise LabelsError(f"{path} cannot be read: it is {what}", hint=_NO_TEXT) from exc
    # str.splitlines also splits at form feeds, U+0085 and U+2028, which may be parts of a name
    lines = (line.strip(" \t\r") for line in re.split("\r?\n", text))
    labels = tuple(line for line in lines if line)
    if len(labels) != classes:
        raise LabelsError(
            f"{path} has {len(labels)} labels, the model has {classes} classes",
            hint="write one label a line, in the order of the classes",
        )
    return labels


def _check_characters(names: Sequence[str], origin: str) -> None:
    """labels.txt has one name a line, in UTF-8."""
    for number, name in enumerate(names):
        if "\n" in name or "\0" in name:
            raise LabelsError(
                f"{origin} calls class {number} {name!r}, which has a line break or a NUL in it",
                hint=f"--labels FILE: {_NO_TEXT}",
            )
        try:
            name.encode()
        except UnicodeEncodeError as exc:
            raise LabelsError(
                f"{origin} calls class {number} {name!r}, which is no text",
                hint=f"--labels FILE: {_NO_TEXT}",
            ) from exc


def _notes(names: Sequence[str]) -> Iterator[str]:
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if first.setdefault(name, number) != number:
            yield f"classes {first[name]} and {number} have the same label, {name!r}"
        if any(unicodedata.category(character) in _OBEYED for character in name):
            yield f"the label of class {number} holds control characters: {name!r}"


def _beside_published(
    names: tuple[str, ...], published: tuple[str, ...] | None, *, insisted: bool
) -> Iterator[str]:
    """A note where the labels of a published model change, which they do for all its versions."""
    if published is None or names == published:
        return
    if not names:
        raise ContractChangedError(
            "the published model has labels, and this version would have none",
            hint="--labels FILE keeps them: the labels.txt of the published version",
        )
    if not published:
        yield "the published model gets labels with this version, for all its versions"
    elif len(names) == len(published):  # another number of classes is another contract
        differs = difference(names, published)
        if not insisted:
            raise ContractChangedError(
                f"the checkpoint's metadata names the classes otherwise than the published model: "
                f"{differs}",
                hint="in another order its scores are another model's: give a new --name; "
                "--labels FILE or --relabel corrects the published names",
            )
        yield (
            "the labels of the published model change with this version, for all its versions: "
            f"{differs}"
        )
