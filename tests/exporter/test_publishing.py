"""What is published is whole at every moment, and a publication that fails leaves no trace."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from action_export.errors import RepositoryError
from action_export.publishing import Operation, Publication, notes, publish, recover
from action_export.repository import Names, Plan
from action_export.staging import beside
from support.disk import file_size_limit, open_folder, small_disk, without_privileges
from support.published import (
    CONTRACT,
    NAMES,
    RETRAINED,
    Served,
    as_older_releases_did,
    fill,
    killed,
    nothing,
    observe,
    planned,
    provenance,
    publish_one,
    read_config,
    served,
    served_now,
    tree,
)

OLD: Served = {1: (1, 1)}
NEW: Served = {2: (2, 2)}


class Stopped(Exception):
    """Raised by a test where something else would go wrong."""


# --- Situations ---------------------------------------------------------------------------------


def new_repository(folder: Path) -> Path:
    return folder / "parent" / "repo"


def new_model(folder: Path) -> Path:
    repo = folder / "repo"
    publish_one(repo, names=Names(ensemble="other"))
    (repo / "empty").mkdir()
    return repo


def second_version(folder: Path) -> Path:
    repo = new_model(folder)
    publish_one(repo)
    return repo


def of_an_older_release(folder: Path) -> Path:
    repo = second_version(folder)
    as_older_releases_did(repo)
    return repo


@dataclass(frozen=True, kw_only=True)
class Situation:
    """commit: the operation, counted from 1, with which the new version is served."""

    make: Callable[[Path], Path]
    operations: int
    commit: int
    changes: dict[str, Any]
    old: Served


SITUATIONS = {
    "new repository": Situation(make=new_repository, operations=4, commit=4, changes={}, old={}),
    "new model": Situation(make=new_model, operations=3, commit=3, changes={}, old={}),
    "version 2": Situation(make=second_version, operations=8, commit=6, changes={}, old=OLD),
    "version 2 with other settings": Situation(
        make=second_version, operations=6, commit=4, changes={"max_batch_size": 2}, old=OLD
    ),
    "version 2 of an older release's": Situation(
        make=of_an_older_release, operations=11, commit=9, changes={}, old=OLD
    ),
    "version 2 of an older release's with other settings": Situation(
        make=of_an_older_release,
        operations=9,
        commit=7,
        changes={"max_batch_size": 2},
        old=OLD,
    ),
}
EVERY_OPERATION = [(name, step) for name, at in SITUATIONS.items() for step in range(at.operations)]


# --- Whatever a server reads --------------------------------------------------------------------


@pytest.mark.parametrize("name", SITUATIONS)
def test_at_every_moment_what_is_served_was_proved_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    at = SITUATIONS[name]
    repo = at.make(tmp_path)
    seen: list[Served] = []
    observe(monkeypatch, nothing, lambda number: seen.append(served_now(repo)))
    publish_one(repo, RETRAINED, **at.changes)
    new = NEW if at.old else {1: (1, 1)}
    assert len(seen) == at.operations
    assert all(state == at.old for state in seen[: at.commit - 1])
    expected = [new] if at.commit == at.operations or not at.changes else [{}, new]
    assert seen[at.commit - 1] == expected[0]
    assert seen[-1] == new
    assert all(state in expected for state in seen[at.commit - 1 :])
    assert provenance(repo, "tiny") == provenance(repo, "tiny_preprocess") == RETRAINED.provenance


@pytest.mark.parametrize("name", [name for name, at in SITUATIONS.items() if at.old])
def test_the_steps_are_left_with_the_new_version_alone(tmp_path: Path, name: str) -> None:
    at = SITUATIONS[name]
    repo = at.make(tmp_path)
    publish_one(repo, RETRAINED, **at.changes)
    for model in NAMES:
        assert list(read_config(repo, model).version_policy.specific.versions) == [2]


@pytest.mark.parametrize("name", ["version 2", "version 2 of an older release's"])
def test_a_server_that_reads_the_ensemble_early_or_late_finds_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It reads one config after the other, so those of the steps may be of any later moment."""
    at = SITUATIONS[name]
    repo = at.make(tmp_path)
    ensembles = [read_config(repo, "tiny")]
    checked = 0

    def look(number: int) -> None:
        nonlocal checked
        ensembles.append(read_config(repo, "tiny"))
        pinned = [config for config in ensembles if -1 not in versions_of_steps(config)]
        for ensemble in pinned if number < at.commit else ():
            checked += 1
            assert served(ensemble, repo) in (OLD, NEW)

    observe(monkeypatch, nothing, look)
    publish_one(repo, RETRAINED)
    assert checked > at.commit


def versions_of_steps(ensemble: Any) -> set[int]:
    return {step.model_version for step in ensemble.ensemble_scheduling.step}


def test_the_old_version_stays_loaded_until_servers_that_poll_have_had_their_time(
    tmp_path: Path,
) -> None:
    repo = second_version(tmp_path)
    what = planned(repo)
    during: list[list[int]] = []

    def settle() -> None:
        assert served_now(repo) == NEW
        for step in NAMES.steps:
            during.append(list(read_config(repo, step).version_policy.specific.versions))

    with beside(repo) as stage:
        fill(what, stage, "new")
        publish(what, stage, settle)
    assert during == [[1, 2], [1, 2]]


def test_what_was_not_pinned_is_loaded_pinned_before_there_is_anything_else_to_run(
    tmp_path: Path,
) -> None:
    """A server that polls goes on with the ensemble in its memory until it has loaded the steps."""
    repo = of_an_older_release(tmp_path)
    what = planned(repo)
    states: list[tuple[Served, bool]] = []

    def settle() -> None:
        states.append((served_now(repo), any(repo.rglob("tiny_*/2"))))

    with beside(repo) as stage:
        fill(what, stage, "new")
        publish(what, stage, settle)
    assert states == [(OLD, False), (NEW, True)]


@pytest.mark.parametrize("name", ["new repository", "new model", "version 2 with other settings"])
def test_nobody_waits_where_no_old_version_can_stay(tmp_path: Path, name: str) -> None:
    at = SITUATIONS[name]
    repo = at.make(tmp_path)
    what = planned(repo, **at.changes)

    def settle() -> None:
        raise Stopped

    with beside(repo) as stage:
        fill(what, stage, "new")
        publish(what, stage, settle)
    assert served_now(repo)


def test_what_an_older_release_has_mixed_is_what_its_ensemble_was_proved_with(
    tmp_path: Path,
) -> None:
    """It was killed when two of the three models had got version 2."""
    repo = of_an_older_release(tmp_path)
    for step in NAMES.steps:
        (repo / step / "2").mkdir()
    assert served_now(repo) == {1: (2, 2)}
    seen: list[Served] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        observe(monkeypatch, nothing, lambda number: seen.append(served_now(repo)))
        assert publish_one(repo).version == 3
    assert all(state in ({}, OLD, {3: (3, 3)}) for state in seen)
    assert OLD in seen
    assert seen[-1] == {3: (3, 3)}


def test_an_ensemble_whose_steps_were_mixed_by_hand_is_refused(tmp_path: Path) -> None:
    repo = second_version(tmp_path)
    publish_one(repo)
    config = repo / "tiny/config.pbtxt"
    config.write_text(config.read_text("utf-8").replace("model_version: 2", "model_version: 1", 1))
    with pytest.raises(RepositoryError, match=r"versions \[1, 2\]") as caught:
        planned(repo)
    assert "model_version" in caught.value.hint


# --- A failure at every operation ---------------------------------------------------------------

FAILURES: dict[str, Callable[[], BaseException]] = {
    "disk": lambda: OSError(28, "No space left on device", "somewhere"),
    "interrupt": KeyboardInterrupt,
    "bug": Stopped,
}


EVERY_FAILURE = [(name, step, "disk") for name, step in EVERY_OPERATION]
EVERY_FAILURE += [
    ("version 2", step, failure)
    for step in range(SITUATIONS["version 2"].operations)
    for failure in ("interrupt", "bug")
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("name", "step", "failure"), EVERY_FAILURE)
def test_a_failure_at_any_operation_leaves_the_repository_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    step: int,
    failure: str,
    when: str,
) -> None:
    at = SITUATIONS[name]
    repo = at.make(tmp_path)
    before = tree(tmp_path)
    reached: list[int] = []

    def fail(number: int) -> None:
        if number == step:
            reached.append(step)
            raise FAILURES[failure]()

    observe(monkeypatch, *((fail, nothing) if when == "before" else (nothing, fail)))
    expected = RepositoryError if failure == "disk" else type(FAILURES[failure]())
    with pytest.raises(expected) as caught:
        publish_one(repo, RETRAINED, **at.changes)
    assert reached == [step]
    assert tree(tmp_path) == before
    if isinstance(caught.value, RepositoryError):
        assert "No space left on device" in caught.value.message
        assert "left as it was" in caught.value.hint


def test_an_interrupt_of_the_wait_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    repo = second_version(tmp_path)
    before = tree(tmp_path)
    what = planned(repo)

    def settle() -> None:
        raise KeyboardInterrupt

    def export() -> None:
        with beside(repo) as stage:
            fill(what, stage, "new")
            publish(what, stage, settle)

    with pytest.raises(KeyboardInterrupt):
        export()
    assert tree(tmp_path) == before


def test_what_a_later_export_stands_on_is_not_undone(tmp_path: Path) -> None:
    repo = second_version(tmp_path)
    what = planned(repo)

    def settle() -> None:
        assert publish_one(repo).version == 3
        raise KeyboardInterrupt

    def export() -> None:
        with beside(repo) as stage:
            fill(what, stage, "new")
            publish(what, stage, settle)

    with pytest.raises(KeyboardInterrupt):
        export()
    assert served_now(repo) == {3: (3, 3)}
    for name in NAMES:
        assert (repo / name / "2").is_dir()


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_failure_inside_the_replacement_of_a_file_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    repo = second_version(tmp_path)
    before = tree(tmp_path)
    real, calls = getattr(os, call), 0

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(KeyboardInterrupt):
        publish_one(repo)
    assert calls >= 2
    assert tree(tmp_path) == before


def test_a_file_system_without_hard_links_is_published_to_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: Any) -> None:
        raise OSError(95, "Operation not supported")

    def fail(number: int) -> None:
        if number == SITUATIONS["version 2"].operations - 1:
            raise Stopped

    repo = second_version(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as failing:
        observe(failing, nothing, fail)
        with pytest.raises(Stopped):
            publish_one(repo)
    assert tree(tmp_path) == before
    assert publish_one(repo).version == 2


@pytest.mark.parametrize("stuck", ["tiny_preprocess/config.pbtxt", "tiny/config.pbtxt"])
def test_what_cannot_be_put_back_is_named_and_the_next_export_does_it(
    tmp_path: Path, stuck: str
) -> None:
    repo = second_version(tmp_path)
    before = tree(tmp_path)
    real = Publication.undo

    def undo(self: Publication, operation: Operation) -> None:
        if operation.target == stuck:
            raise OSError(5, "Input/output error", operation.target)
        real(self, operation)

    def fail(number: int) -> None:
        if number == SITUATIONS["version 2"].commit:
            raise OSError(5, "Input/output error", "somewhere")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Publication, "undo", undo)
        observe(monkeypatch, fail, nothing)
        with pytest.raises(RepositoryError, match=r"config\.pbtxt cannot be put back") as caught:
            publish_one(repo)
    (left,) = tmp_path.glob(".repo.staging-*")
    assert caught.value.hint.endswith(f"it puts back what is in {left}")
    assert not list(repo.rglob("2"))
    assert served_now(repo) == (OLD if stuck.startswith("tiny_") else {})
    recover(repo)
    assert tree(tmp_path) == before
    assert served_now(repo) == OLD


# --- Killed outright ----------------------------------------------------------------------------


EVERY_KILL = [(name, step) for name, at in SITUATIONS.items() for step in range(at.operations + 1)]


@pytest.mark.parametrize(("name", "after"), EVERY_KILL)
def test_what_was_killed_is_completed_or_undone_by_the_next_export(
    tmp_path: Path, name: str, after: int
) -> None:
    at = SITUATIONS[name]
    repo = at.make(tmp_path)
    repo.parent.mkdir(exist_ok=True)  # the next to last operation makes no parents
    before = tree(tmp_path)
    killed(repo, after, **at.changes)
    left = served_now(repo)
    new = NEW if at.old else {1: (1, 1)}
    committed = after >= at.commit
    gap = committed and bool(at.changes) and after < at.operations
    assert left == ({} if gap else new if committed else at.old)
    recover(repo)
    if not committed:
        assert tree(tmp_path) == before
        return
    assert served_now(repo) == new
    for model in NAMES:
        assert list(read_config(repo, model).version_policy.specific.versions) == list(new)
    assert not [path for path in repo.parent.iterdir() if path.name.startswith(".")]
    finished = tree(tmp_path)
    recover(repo)
    assert tree(tmp_path) == finished


@pytest.mark.parametrize("after", range(SITUATIONS["version 2"].operations + 1))
def test_what_was_killed_is_no_obstacle_where_it_cannot_be_recovered(
    tmp_path: Path, after: int
) -> None:
    """The staging folder is of another machine, or somebody has removed it."""
    repo = second_version(tmp_path)
    killed(repo, after)
    (stage,) = repo.parent.glob(".*.staging-*")
    stage.rename(tmp_path / "elsewhere")
    seen: list[Served] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        observe(monkeypatch, nothing, lambda number: seen.append(served_now(repo)))
        version = publish_one(repo, content="next").version
    assert all(state in (OLD, NEW, {version: (version, version)}) for state in seen)
    assert served_now(repo) == {version: (version, version)}
    assert (repo / f"tiny_recognizer/{version}/model.onnx").read_text() == "next"


def test_a_later_version_is_not_undone_for_one_that_was_killed(tmp_path: Path) -> None:
    """The later one was under way already, and published before the first was looked at."""
    repo = second_version(tmp_path)
    commit = SITUATIONS["version 2"].commit
    killed(repo, commit)
    publish_one(repo, content="later")
    before = tree(repo)
    recover(repo)
    assert tree(repo) == before
    assert served_now(repo) == {3: (3, 3)}
    assert not list(repo.parent.glob(".*"))


def test_a_publication_that_goes_on_is_not_recovered(tmp_path: Path) -> None:
    repo = second_version(tmp_path)
    what = planned(repo)

    def settle() -> None:
        before = tree(tmp_path)
        recover(repo)
        assert tree(tmp_path) == before

    with beside(repo) as stage:
        fill(what, stage, "new")
        recover(repo)
        publish(what, stage, settle)
    assert served_now(repo) == NEW


def test_what_may_not_be_changed_is_left_and_nothing_fails() -> None:
    with open_folder() as folder:
        repo = folder / "repo"
        publish_one(repo)
        killed(repo, SITUATIONS["version 2"].commit - 1)
        before = tree(folder)
        for path in (folder, *repo.iterdir()):
            path.chmod(0o555)
        with without_privileges():
            recover(repo)
        for path in (folder, *repo.iterdir()):
            path.chmod(0o777)
        assert tree(folder).keys() == before.keys()
        assert served_now(repo) == OLD


# --- Who may read it ----------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "closed"), [(0o022, False), (0o002, False), (0o077, True)])
def test_what_a_servers_user_cannot_read_is_told_with_the_way_out(
    tmp_path: Path, umask: int, closed: bool
) -> None:
    before = os.umask(umask)
    try:
        what = publish_one(tmp_path / "repo")
    finally:
        os.umask(before)
    told = notes(what)
    assert bool(told) is closed
    if closed:
        assert f"chmod -R a+rX {what.repo}" in told[0]
        os.system(f"chmod -R a+rX {what.repo}")
        assert not notes(what)


# --- Disks that refuse for real -----------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A real file system of 64 KiB; the staged runtime alone is more."""
    with small_disk(tmp_path / "disk", 64) as disk:
        if disk is None:
            pytest.skip("mounting is not permitted here")
        with pytest.raises(RepositoryError, match="No space left on device") as caught:
            publish_one(disk / "parent" / "repo", content="x" * 50_000)
        assert "free space" in caught.value.hint
        assert not list(disk.iterdir())


def test_a_disk_that_fills_up_leaves_a_published_model_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        if disk is None:
            pytest.skip("mounting is not permitted here")
        publish_one(disk / "repo")
        before = tree(disk)
        with pytest.raises(RepositoryError, match="No space left on device"):
            publish_one(disk / "repo", content="x" * 600_000)
        assert tree(disk) == before


def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path) -> None:
    """The same without a mount: the kernel refuses the bytes beyond a limit (EFBIG)."""
    repo = tmp_path / "parent" / "repo"
    with (
        file_size_limit(20_000),
        pytest.raises(RepositoryError, match="File too large") as caught,
    ):
        publish_one(repo, content="x" * 50_000)
    assert "free space" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("closed", ["parent", "repository", "model"])
def test_a_target_without_permission_is_left_as_it_was(closed: str) -> None:
    with open_folder() as folder:
        repo = folder / "repo"
        publish_one(repo)
        for path in repo.iterdir():
            path.chmod(0o777)
        target = {"parent": folder, "repository": repo, "model": repo / "tiny_recognizer"}[closed]
        target.chmod(0o555)
        before = tree(folder)
        what = planned(repo, names=Names(ensemble="new") if closed == "repository" else NAMES)

        def export() -> None:
            with beside(repo) as stage:
                fill(what, stage, "graph")
                publish(what, stage)

        with without_privileges(), pytest.raises(RepositoryError) as caught:
            export()
        assert "Permission denied" in caught.value.message
        assert str(target) in caught.value.message
        assert caught.value.hint
        assert tree(folder) == before
        for path in (folder, repo, *repo.iterdir()):
            path.chmod(0o777)


# --- Two exports at once ------------------------------------------------------------------------


def winner_of(repo: Path, what: Plan) -> set[str]:
    return {(repo / path).read_text() for path in (what.graph, what.manifest)}


@pytest.mark.parametrize("name", SITUATIONS)
def test_of_two_exports_to_one_version_one_wins_and_the_other_leaves_no_trace(
    tmp_path: Path, name: str
) -> None:
    repo = SITUATIONS[name].make(tmp_path)
    with ExitStack() as stack:
        first, second = planned(repo), planned(repo)
        assert first.version == second.version
        stages = [stack.enter_context(beside(repo)) for _ in range(2)]
        fill(first, stages[0], "first")
        fill(second, stages[1], "second")
        publish(first, stages[0])
        before = tree(repo)
        with pytest.raises(RepositoryError, match=r"cannot be written|published in") as caught:
            publish(second, stages[1])
        assert str(repo) in caught.value.message
        assert tree(repo) == before
    assert winner_of(repo, first) == {"first"}
    assert not list(repo.parent.glob(".*"))


def test_an_export_does_not_slip_another_contract_into_a_model_that_has_just_appeared(
    tmp_path: Path,
) -> None:
    repo = tmp_path / "repo"
    other = replace(CONTRACT, average="score")
    with beside(repo) as stage:
        late = planned(repo, other, version=2)
        fill(late, stage, "late")
        publish_one(repo)
        before = tree(repo)
        with pytest.raises(RepositoryError):
            publish(late, stage)
        assert tree(repo) == before


@pytest.mark.parametrize("name", SITUATIONS)
def test_exports_that_race_end_in_one_whole_version(tmp_path: Path, name: str) -> None:
    for round_ in range(5):
        (tmp_path / str(round_)).mkdir()
        repo = SITUATIONS[name].make(tmp_path / str(round_))
        plans = [planned(repo) for _ in range(3)]
        barrier = threading.Barrier(len(plans))
        outcomes: dict[int, BaseException | None] = {}

        def export(
            number: int,
            repo: Path = repo,
            plans: list[Plan] = plans,
            barrier: threading.Barrier = barrier,
            outcomes: dict[int, BaseException | None] = outcomes,
        ) -> None:
            with beside(repo) as stage:
                fill(plans[number], stage, f"export {number}")
                barrier.wait()
                try:
                    publish(plans[number], stage)
                    outcomes[number] = None
                except RepositoryError as exc:
                    outcomes[number] = exc

        threads = [threading.Thread(target=export, args=(number,)) for number in range(len(plans))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for number, error in outcomes.items() if error is None]
        assert len(outcomes) == len(plans)
        assert len(winners) == 1, outcomes
        assert not any("cannot be put back" in str(error) for error in outcomes.values())
        assert winner_of(repo, plans[0]) == {f"export {winners[0]}"}
        assert not list(repo.parent.glob(".*"))
