"""What is staged goes into the repository, or the repository is as it was.

A publication is a row of operations, each one rename. One of them is the commit: the config of the
ensemble, which says what versions of its steps it runs; of a new model, the ensemble itself. The
rules, at whatever moment a server reads the repository and the process is killed:

1. The ensemble names the version of each step, so it runs those that were proved together or none.
2. A version's folder arrives before a config that loads it.
3. Until the commit, and for a while after it, the steps load the old version and the new one. So a
   server that polls always has what the ensemble runs, whichever of its configs it has read.
4. Where a step's settings change with the version, rule 3 would run the old version under the new
   settings, which nobody has proved: there the steps change after the commit, and in between there
   is no such model.
5. The row is written down in the staging folder before it begins. The next export finds it there:
   it completes what was committed, and undoes what was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from action_runtime.spec import PARAMETER

from action_export import pbtxt, repository
from action_export.errors import RepositoryError
from action_export.repository import Plan
from action_export.staging import abandoned, alone, leave_behind, remove_if_empty

JOURNAL = "journal.json"
UNDONE = "undone"
"""Beside it: the publication failed and is to be undone, also what was committed."""

_ROWS = ("pins", "before", "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One change of the repository, done whole or not at all; undoing what was not done is nothing.

    folder: makes the repository itself. move: a folder arrives. replace: a file takes the place of
    another, which is kept as `backup`.
    source, backup: below the staging folder. target: below the repository.
    ours: by what `source` is known again at `target`.
    instead_of: by what the file is known that is replaced.
    """

    kind: Literal["folder", "move", "replace"]
    target: str
    source: str = ""
    backup: str = ""
    ours: str = ""
    instead_of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """All operations of one export, in their order, and where between them it is committed.

    pins: of what is there, where it does not name its versions. before: the last is the commit.
    after: what completes it.
    settles: whether servers that poll must have loaded the commit before `after` begins.
    """

    repo: Path
    stage: Path
    pins: tuple[Operation, ...] = ()
    before: tuple[Operation, ...]
    after: tuple[Operation, ...] = ()
    settles: bool = False

    def act(self, operation: Operation) -> None:
        target, source = self.repo / operation.target, self.stage / operation.source
        match operation.kind:
            case "folder":
                target.mkdir(exist_ok=True)
            case "move":
                os.rename(source, target)
            case "replace":
                _back_up(target, self.stage / operation.backup)
                # A server that polls compares times, and the clock that stamps a rename moves on
                # only some 250 times a second: two changes could look like one.
                os.utime(source)
                os.replace(source, target)

    def act_all(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self.act(operation)

    def undo(self, operation: Operation) -> None:
        target = self.repo / operation.target
        match operation.kind:
            case "folder":
                remove_if_empty(target)
            case "move" if self.is_done(operation):
                os.rename(target, self.stage / operation.source)
            # Without a backup we have not replaced it: who publishes beside us may write the same.
            case "replace" if self.is_done(operation) and self._has_backup(operation):
                os.replace(self.stage / operation.backup, target)

    def is_done(self, operation: Operation) -> bool:
        """Whether what we brought is at its place, and nobody has put something else there."""
        return _identity(self.repo / operation.target) == operation.ours

    def _has_backup(self, operation: Operation) -> bool:
        return (self.stage / operation.backup).exists()

    @property
    def is_committed(self) -> bool:
        """Also where a later export has replaced it; not where it was undone."""
        commit = self.before[-1]
        if (self.stage / commit.source).exists() or (self.stage / UNDONE).exists():
            return False
        return _identity(self.repo / commit.target) != commit.instead_of

    @property
    def is_superseded(self) -> bool:
        """A later export stands on this one."""
        return self.is_committed and not self.is_done(self.before[-1])

    def complete(self) -> None:
        """Does what is to follow the commit, where no later export has done better."""
        for operation in self.after:
            if _identity(self.repo / operation.target) == operation.instead_of:
                self.act(operation)

    def undo_all(self) -> list[OSError]:
        """Undoes the last first; the errors of those that cannot be."""
        failed: list[OSError] = []
        for operation in reversed((*self.pins, *self.before, *self.after)):
            try:
                self.undo(operation)
            except OSError as exc:
                failed.append(exc)
        return failed

    def write(self) -> None:
        rows = {name: [asdict(operation) for operation in getattr(self, name)] for name in _ROWS}
        (self.stage / JOURNAL).write_text(json.dumps(rows, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, repo: Path, stage: Path) -> Publication | None:
        """None where nothing was written down, or not all of it: then nothing was done either."""
        try:
            rows = json.loads((stage / JOURNAL).read_text("utf-8"))
            pins, before, after = (tuple(Operation(**row) for row in rows[name]) for name in _ROWS)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(repo=repo, stage=stage, pins=pins, before=before, after=after)


def publish(plan: Plan, stage: Path, settle: Callable[[], None] = lambda: None) -> None:
    """Moves the staged models into the repository, or leaves it as it was.

    settle: waits until servers that poll have had the time to load what there is; called where
        there is an old version, which they serve until then. An exception of it undoes everything.

    Raises:
        RepositoryError: a step failed, and every earlier one was undone.
    """
    with alone(plan.repo):
        _check_unchanged(plan)
        publication = prepare(plan, stage)
        publication.write()
    with _undone_if_it_fails(plan, publication):
        if publication.pins:
            with alone(plan.repo):
                publication.act_all(publication.pins)
            # An ensemble without pins that a server has in memory would run the new steps.
            settle()
        with alone(plan.repo):
            _check_unchanged(plan)
            publication.act_all(publication.before)
        if publication.settles:
            settle()
        with alone(plan.repo):
            publication.complete()


def recover(repo: Path) -> None:
    """Completes or undoes what killed exports to this repository have left, and removes it.

    What cannot be mended, for want of permissions, is left: no ensemble runs it.
    """
    for stage in abandoned(repo):
        publication = Publication.read(repo, stage)
        with suppress(OSError):
            if publication is not None and not _settle_accounts(publication):
                continue
            shutil.rmtree(stage)


def notes(plan: Plan) -> tuple[str, ...]:
    """Of what is published but cannot be read by a server that runs as another user."""
    closed = [path for path in (plan.repo, *_published(plan)) if not _is_open(path)]
    if not closed:
        return ()
    return (
        f"{closed[0]} is for this user only, as the umask has it: before a server of another user "
        f"reads it, such as one in a container, chmod -R a+rX {shlex.quote(str(plan.repo))}",
    )


def _is_open(path: Path) -> bool:
    try:
        found = path.stat().st_mode
    except FileNotFoundError:  # Python's caches, which a server renames when it has loaded
        return True
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(found) else 0)
    return found & needed == needed


def _published(plan: Plan) -> Iterator[Path]:
    for name in plan.names:
        yield plan.repo / name
        yield plan.repo / name / "config.pbtxt"
        yield from (plan.repo / name / str(plan.version)).rglob("*")


def _settle_accounts(publication: Publication) -> bool:
    """Whether all could be done that had to be."""
    with alone(publication.repo):
        if not publication.is_committed:
            return not publication.undo_all()
        publication.complete()
        return True


@contextmanager
def _undone_if_it_fails(plan: Plan, publication: Publication) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        if publication.is_superseded:
            raise
        with alone(plan.repo):
            failed = publication.undo_all()
        if failed:
            (publication.stage / UNDONE).touch()
            left = leave_behind(publication.stage)
            raise RepositoryError(
                f"{failed[0].filename} cannot be put back: {failed[0].strerror}",
                hint=f"mend this and export to {plan.repo} again: it puts back what is in {left}",
            ) from failed[0]
        if isinstance(exc, OSError):
            raise RepositoryError(
                f"{exc.filename2 or exc.filename or plan.repo} cannot be written: {exc.strerror}",
                hint=f"{plan.repo} was left as it was; mend this and export again",
            ) from exc
        raise


def prepare(plan: Plan, stage: Path) -> Publication:
    """Decides on the operations, and stages the configs that are there for a while only.

    What is new and what is there is the plan's decision, not the disk's: a model that another
    export has published in the meantime is in the way, and stays.
    """
    place = _Place(plan, stage)
    if plan.live is None:
        folder = () if plan.repo.exists() else (Operation(kind="folder", target=""),)
        arrivals = tuple(place.move(name) for name in plan.names)
        return Publication(repo=plan.repo, stage=stage, before=(*folder, *arrivals))
    arrivals = tuple(place.move(f"{name}/{plan.version}") for name in plan.names)
    settles = place.keeps_settings
    pins = () if plan.live.pinned else tuple(place.pin(name) for name in reversed([*plan.names]))
    both = tuple(place.load_both(step) for step in plan.names.steps) if settles else ()
    commit = place.replace(plan.names.ensemble)
    return Publication(
        repo=plan.repo,
        stage=stage,
        pins=pins,
        before=(*arrivals, *both, commit),
        after=tuple(place.replace(step) for step in plan.names.steps),
        settles=settles,
    )


class _Place:
    """Makes the operations of one plan, and knows what each config is by then."""

    def __init__(self, plan: Plan, stage: Path) -> None:
        self._plan, self._stage = plan, stage
        self._there = {name: self._path(name).read_text("utf-8") for name in self._published}
        self._new = {name: pbtxt.parse(plan.texts[f"{name}/config.pbtxt"]) for name in plan.names}

    @property
    def _published(self) -> tuple[str, ...]:
        return () if self._plan.live is None else tuple(self._plan.names)

    def _path(self, name: str) -> Path:
        return self._plan.repo / name / "config.pbtxt"

    @property
    def keeps_settings(self) -> bool:
        """Whether the steps compute under the new configs as they do under those that are there.

        The contract is no matter: it is the same but for where the model came from, or the plan
        would have been refused.
        """
        return all(
            pbtxt.same_settings(
                pbtxt.parse(self._there[step]), self._new[step], apart_from=PARAMETER
            )
            for step in self._plan.names.steps
        )

    def move(self, path: str) -> Operation:
        ours = _identity(self._stage / path)
        return Operation(kind="move", source=path, target=path, ours=ours)

    def pin(self, name: str) -> Operation:
        """What is there, loading the version that it has loaded until now."""
        assert self._plan.live is not None
        live, config = self._plan.live.version, pbtxt.parse(self._there[name])
        if name == self._plan.names.ensemble:
            return self._replace(name, f"{name}.pinned", pbtxt.pinned(config, live))
        return self._replace(name, f"{name}.pinned", pbtxt.loading(config, [live]))

    def load_both(self, name: str) -> Operation:
        assert self._plan.live is not None
        versions = [self._plan.live.version, self._plan.version]
        return self._replace(name, f"{name}.both", pbtxt.loading(self._new[name], versions))

    def replace(self, name: str) -> Operation:
        return self._replace(name, f"{name}/config.pbtxt", self._plan.texts[f"{name}/config.pbtxt"])

    def _replace(self, name: str, source: str, text: str) -> Operation:
        before, self._there[name] = self._there[name], text
        (self._stage / source).write_text(text, encoding="utf-8")
        return Operation(
            kind="replace",
            source=source,
            target=f"{name}/config.pbtxt",
            backup=f"{source.replace('/', '.')}.before",
            ours=_digest(text.encode()),
            instead_of=_digest(before.encode()),
        )


def _check_unchanged(plan: Plan) -> None:
    """Refuses where another export has changed what the plan was made for."""
    if plan.live is None:
        return
    if repository.live(plan.repo, plan.names).version != plan.live.version:
        raise RepositoryError(
            f"another version of {plan.names.ensemble} was published in {plan.repo} meanwhile",
            hint="export again: it becomes the version after that one",
        )


def _identity(path: Path) -> str:
    """Of a file its content; of a folder its inode, which goes with it; "" where there is none."""
    try:
        if path.is_dir():
            return f"inode {path.stat().st_ino}"
        return _digest(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _back_up(file: Path, backup: Path) -> None:
    if backup.exists():
        return  # of an export that was killed before it replaced the file
    try:
        # a second name of the same file: undoing brings back the very inode
        os.link(file, backup)
    except OSError:  # some network file systems have no hard links
        shutil.copy2(file, backup)
