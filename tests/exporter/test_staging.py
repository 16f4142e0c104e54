"""The folder beside the repository: where it is, when it goes, and whose it is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from action_export.errors import RepositoryError
from action_export.staging import OWNER, abandoned, alone, beside
from support.disk import small_disk
from support.published import fill, planned, publish_one, tree


def test_staging_is_beside_the_repository_and_gone_afterwards(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo)
    before = tree(tmp_path)
    with beside(repo) as stage:
        assert stage.parent == tmp_path
        assert stage.stat().st_dev == repo.stat().st_dev
        (stage / "file").write_text("x")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("way", ["link", "..", "."])
def test_staging_is_never_inside_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    repo = tmp_path / "deep" / "repo"
    (repo / "other").mkdir(parents=True)
    given = {"link": tmp_path / "link", "..": Path(".."), ".": Path()}[way]
    (tmp_path / "link").symlink_to(repo)
    monkeypatch.chdir(repo / "other" if way == ".." else repo)
    with beside(given) as stage:
        assert stage.parent == repo.parent
    what = publish_one(given)
    assert (repo / what.graph).is_file()


def test_missing_parents_are_made_and_stay_with_the_repository(tmp_path: Path) -> None:
    publish_one(tmp_path / "a" / "b" / "repo")
    assert (tmp_path / "a/b/repo/tiny/config.pbtxt").is_file()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["repo"]


class Stopped(Exception):
    """Raised by a test where something else would go wrong."""


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt, RepositoryError("no")])
def test_nothing_is_left_of_parents_when_the_block_fails(
    tmp_path: Path, error: type[BaseException] | BaseException
) -> None:
    repo = tmp_path / "a" / "b" / "repo"

    def export() -> None:
        with beside(repo) as stage:
            fill(planned(repo), stage, "x")
            raise error

    with pytest.raises((Stopped, KeyboardInterrupt, RepositoryError)):
        export()
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_parents_that_could_not_all_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(RepositoryError, match="name too long"),
        beside(tmp_path / "a" / ("b" * 300) / "repo"),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["file/repo", "file/deep/repo"])
def test_a_file_among_the_parents_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("a file")
    repo = tmp_path / below
    with pytest.raises(RepositoryError, match="Not a directory"), beside(repo):
        pass
    assert (tmp_path / "file").read_text() == "a file"


def test_a_bug_in_the_block_keeps_its_own_exception(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), beside(tmp_path / "repo"):
        (tmp_path / "nowhere").read_text()


def test_a_repository_that_is_a_mount_point_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with small_disk(tmp_path / "repo", 1024) as repo:
        if repo is None:
            pytest.skip("mounting is not permitted here")
        with pytest.raises(RepositoryError, match="file system of its own") as caught:
            publish_one(repo)
        assert f"--triton-repo {repo / 'models'}" in caught.value.hint
        assert not list(repo.iterdir())
        assert publish_one(repo / "models").version == 1
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


# --- Whose it is --------------------------------------------------------------------------------


def left_behind(repo: Path) -> Path:
    """The staging folder of a process that is killed."""
    child = os.fork()
    if child == 0:
        with beside(repo) as stage:
            (stage / "graph").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (stage,) = repo.parent.glob(".*.staging-*")
    return stage


def test_the_folder_of_a_killed_process_is_abandoned_and_carries_its_id(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    stage = left_behind(repo)
    owner = json.loads((stage / OWNER).read_text())
    assert stage.name.startswith(f".repo.staging-{owner['pid']}-")
    assert list(abandoned(repo)) == [stage]


def test_the_folder_of_a_process_that_lives_is_not(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with beside(repo) as stage:
        assert not list(abandoned(repo))
        child = os.fork()
        if child == 0:  # nor is it to another process
            os._exit(len(list(abandoned(repo))))
        assert os.waitpid(child, 0)[1] == 0
        assert stage.is_dir()


def test_it_is_looked_at_by_one_process_at_a_time(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    stage = left_behind(repo)
    for found in abandoned(repo):
        assert found == stage
        assert not list(abandoned(repo))
    assert list(abandoned(repo)) == [stage]


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"boot": "another", "host": "another"}, False),
        ({"boot": "another"}, True),  # this machine, started anew
        ({"host": "another"}, True),  # a container on this machine
    ],
)
def test_what_may_be_of_another_machine_is_left(
    tmp_path: Path, changes: dict[str, str], known: bool
) -> None:
    repo = tmp_path / "repo"
    stage = left_behind(repo)
    owner = json.loads((stage / OWNER).read_text())
    (stage / OWNER).write_text(json.dumps({**owner, **changes}))
    assert list(abandoned(repo)) == ([stage] if known else [])


@pytest.mark.parametrize("name", [".repo.staging-abcd_123", ".repo.staging-7-abcd_123"])
def test_what_has_no_owner_is_abandoned_after_a_day(tmp_path: Path, name: str) -> None:
    """As older releases made it, and as it is between the making and the locking."""
    stage = tmp_path / name
    stage.mkdir()
    assert not list(abandoned(tmp_path / "repo"))
    day_ago = time.time() - 25 * 3600
    os.utime(stage, (day_ago, day_ago))
    assert list(abandoned(tmp_path / "repo")) == [stage]


def test_what_others_keep_beside_the_repository_is_nobodys_staging_folder(tmp_path: Path) -> None:
    left_behind(tmp_path / "repo.2")
    for name in (".repo.staging-", ".repo.staging-backup-of-mine", "repo.staging-7-abcd_123"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    assert not list(abandoned(tmp_path / "repo"))


def test_there_is_nothing_beside_a_repository_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for repo in (tmp_path / "nowhere/repo", tmp_path / "file/repo", tmp_path / ("r" * 300)):
        assert not list(abandoned(repo))


# --- One at a time ------------------------------------------------------------------------------


def test_the_repository_is_changed_by_one_at_a_time_and_no_lock_is_left(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    inside, most = 0, 0
    guard = threading.Lock()

    def change() -> None:
        nonlocal inside, most
        for _ in range(20):
            with alone(repo):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0005)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not list(tmp_path.iterdir())


def test_who_has_locked_the_repository_itself_is_not_waited_for(tmp_path: Path) -> None:
    """As `flock repo action-export ...` does."""
    repo = tmp_path / "repo"
    repo.mkdir()
    folder = os.open(repo, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with alone(repo):
            pass
    finally:
        os.close(folder)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    child = os.fork()
    if child == 0:
        with alone(repo):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with alone(repo):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
